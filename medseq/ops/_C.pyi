"""The compiled CPU kernels (csrc/module.cpp). Tensors are passed as addresses of contiguous memory."""

openmp: bool

def instruction_sets() -> list[str]: ...
def wkv_forward(
    isa: str,
    is_double: bool,
    chunk64: bool,
    batch: int,
    length: int,
    channels: int,
    w: int,
    u: int,
    k: int,
    v: int,
    y: int,
    threads: int,
    /,
) -> None: ...
def wkv_backward(
    isa: str,
    is_double: bool,
    chunk64: bool,
    batch: int,
    length: int,
    channels: int,
    w: int,
    u: int,
    k: int,
    v: int,
    gy: int,
    gw: int,
    gu: int,
    gk: int,
    gv: int,
    threads: int,
    /,
) -> None: ...
def selective_scan_forward(
    isa: str,
    is_double: bool,
    sizes: list[int],
    flags: list[int],
    inputs: list[int],
    outputs: list[int],
    threads: int,
    /,
) -> None: ...
def selective_scan_backward(
    isa: str,
    is_double: bool,
    sizes: list[int],
    flags: list[int],
    inputs: list[int],
    incoming: list[int],
    outputs: list[int],
    threads: int,
    /,
) -> None: ...
def exp2(isa: str, is_double: bool, count: int, x: int, y: int, /) -> None: ...
