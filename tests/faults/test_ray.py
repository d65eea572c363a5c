"""A Ray cluster of two nodes on this machine, one of which is killed while it holds items."""

import pytest

from medseq.errors import BackendError, InputError
from medseq.inference.check import check_run
from medseq.inference.ledger import Ledger
from medseq.inference.run import predict_folder

ITEMS = 16


@pytest.fixture
def place(make, tmp_path, rng):
    for number in range(ITEMS):
        make.volume(tmp_path / "in" / f"v{number:02d}.nii", rng, slices=2)
    return tmp_path


@pytest.fixture
def cluster(monkeypatch):
    """A head without work and two nodes of one core each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    cluster.shutdown()


def words(place, bundle, out, **more):
    given = {"modality": "MR", "trust_packages": ("obedient",), "created_utc": "2026-01-02T03:04:05Z"}
    return {"bundle": bundle, "input": place / "in", "output": place / out, **given, **more}


def in_work(out):
    """Owner of every item in work."""
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        return [ledger.events(item.id)[-1].worker for item in ledger.items("running")]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_node_that_is_killed_while_it_holds_items_loses_nothing(make, place, cluster):
    machine, nodes = cluster
    bundle = make.bundle(place / "tiny", delay_s=0.3)
    predict_folder(**words(place, bundle, "calm", workers=0))
    victim = nodes[1].node_id[:8]
    killed = []

    def kill(done, total, text):
        held = [owner for owner in in_work(place / "out") if owner.startswith(f"ray-{victim}")]
        if held and not killed:
            machine.remove_node(nodes[1], allow_graceful=False)
            killed.extend(held)

    summary = predict_folder(**words(place, bundle, "out", engine="ray", ray_address=machine.address), progress=kill)
    assert killed, "the node held items when it was killed"
    assert (summary.exit_code, summary.counts["done"]) == (0, ITEMS)
    with Ledger(place / "out" / "run.sqlite", read_only=True) as ledger:
        histories = [ledger.events(item.id) for item in ledger.items()]
    lost = [events for events in histories if any(event.code == "lost" and victim in event.worker for event in events)]
    assert 1 <= len(lost) <= 2, "what the node held, two items at most"
    for events in lost:
        assert [event.state for event in events] == ["queued", "running", "queued", "running", "done"]
        assert victim in events[1].worker
        assert victim not in events[-1].worker
    # Nobody else's work was repeated.
    others = [events for events in histories if events not in lost]
    assert all([event.state for event in events] == ["queued", "running", "done"] for events in others)
    assert make.tree(place / "out") == make.tree(place / "calm")
    assert check_run(place / "out").exit_code == 0


def test_what_ray_cannot_do_is_said_at_the_door(make, place, monkeypatch):
    bundle = make.bundle(place / "tiny")
    with pytest.raises(InputError, match="max_memory is for this machine"):
        predict_folder(**words(place, bundle, "out", engine="ray", max_memory="4G"))
    with pytest.raises(InputError, match="engine is unknown"):
        predict_folder(**words(place, bundle, "out", engine="spark"))
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BackendError, match=r"a cluster needs ray .*pip install 'medseq\[distributed\]'"):
        predict_folder(**words(place, bundle, "out", engine="ray"))
