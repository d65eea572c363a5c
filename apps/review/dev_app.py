import os
from functools import lru_cache
from pathlib import Path
import anyio, hashlib
import numpy as np
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from streamlit.starlette import App
from medseq.errors import MedseqError
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_key import audit_key
from medseq.inference.review_open import open_series
from medseq.inference.review_runs import Runs
S = Path(__file__).parent / "static"
folders = [Path(p) for p in os.environ["MEDSEQ_REVIEW"].split(":")]
RUNS = Runs(folders, audit_key(folders[0]).secret)
CACHE = ByteCache(200 << 20, lambda a: a.nbytes)

@lru_cache(8)
def series(token):
    return open_series(RUNS, token, CACHE, lambda k: "P-" + hashlib.sha256(str(k).encode()).hexdigest()[:6])

def to_mm(layer, plane):
    lay, g = layer.layout(plane), layer.geometry
    o = np.array(g.mm(lay.voxel(0, 0, 0)))
    n = max(lay.shape[0] - 1, 1)
    cols = [np.array(g.mm(lay.voxel(0, 0, 1))) - o, np.array(g.mm(lay.voxel(0, 1, 0))) - o, (np.array(g.mm(lay.voxel(n, 0, 0))) - o) / n, o]
    return [[float(c[k]) for c in cols] for k in range(3)] + [[0, 0, 0, 1]]

def work(token, what, q):
    v = series(token)
    f = int(q.get("frame", 0))
    if what == "info":
        info = v.info()
        for p, d in info["planes"].items(): d["to_mm"] = to_mm(v.master, p)
        for role, planes in info["layers"].items():
            for p, d in planes.items(): d["to_mm"] = to_mm(v.layers[role], p)
        return JSONResponse(info)
    i = int(q["index"])
    if what == "slice":
        lo, hi = (float(q[k]) if k in q else None for k in ("low", "high"))
        return Response(v.slice(q["role"], q["plane"], i, lo, hi, f), media_type="image/png", headers={"cache-control": "private, max-age=600"})
    if what == "value":
        return JSONResponse(v.value(q["plane"], i, float(q["x"]), float(q["y"]), f))
    return JSONResponse(v.roi(q["role"], q["plane"], i, tuple(float(x) for x in q["box"].split(",")), frame=f))

async def answer(request):
    try:
        return await anyio.to_thread.run_sync(work, request.path_params["token"], request.path_params["what"], dict(request.query_params))
    except MedseqError as e:
        return JSONResponse({"error": str(e)}, 404)
app = App("main.py", routes=[Route("/api/{what}/{token}", answer), Mount("/vendor", StaticFiles(directory=S / "vendor")), Mount("/assets", StaticFiles(directory=S))])
