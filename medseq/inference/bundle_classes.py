"""From import paths to objects: which classes a bundle may name, and how they are built.

Only layers and transforms, and only of medseq or of packages that the caller admits by name. The check of names
(`require_trust`) needs no import, so a bundle that is not trusted runs no code at all.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

from medseq.errors import BundleError
from medseq.inference.bundle_schema import ClassSpec

__all__ = ["build_class", "is_transform", "require_trust"]


def build_class(spec: ClassSpec, *, where: str, trust_packages: Iterable[str] = ()) -> Any:
    """Build what a `ClassSpec` names; nested ones first.

    A nested class whose parameter is annotated as a callable is handed over as a factory with its keywords bound
    (``mixer: Callable[[int], nn.Module]``), otherwise as an instance.

    Raises:
        BundleError: Not trusted, not found, not a layer or a transform, or built with wrong keywords.
    """
    trust = tuple(trust_packages)
    cls = _resolve(spec.class_path, trust, where)
    wanted = _parameter_types(cls)
    kwargs = {key: _build_value(value, wanted.get(key), trust, where) for key, value in spec.init_args.items()}
    try:
        inspect.signature(cls).bind(**kwargs)
        return cls(**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BundleError(
            f"{spec.class_path} cannot be built: {error}", where=where, remedy="check its init_args"
        ) from None


def _build_value(value: Any, wanted: Any, trust: tuple[str, ...], where: str) -> Any:
    if isinstance(value, list):
        return [_build_value(entry, None, trust, where) for entry in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: _build_value(entry, None, trust, where) for key, entry in value.items()}
    spec = _nested(value, where)
    if _is_callable_type(wanted):
        cls = _resolve(spec.class_path, trust, where)
        types = _parameter_types(cls)
        bound = {key: _build_value(entry, types.get(key), trust, where) for key, entry in spec.init_args.items()}
        return partial(cls, **bound)
    return build_class(spec, where=where, trust_packages=trust)


def _nested(value: dict[str, Any], where: str) -> ClassSpec:
    unknown = set(value) - {"class_path", "init_args"}
    if unknown or not isinstance(value["class_path"], str) or not isinstance(value.get("init_args", {}), dict):
        raise BundleError("nested class_path is malformed", where=where, wanted="class_path and init_args only")
    return ClassSpec.model_construct(class_path=value["class_path"], init_args=value.get("init_args", {}))


def _parameter_types(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def _is_callable_type(hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Callable or origin is Callable or (inspect.isclass(origin) and origin.__name__ == "Callable"):
        return True
    return any(_is_callable_type(part) for part in get_args(hint)) if origin not in (None, list, tuple, dict) else False


def require_trust(spec: ClassSpec, trust: tuple[str, ...], where: str) -> None:
    """Refuse a class path of a package that was not admitted, at any depth, before anything is imported.

    Raises:
        BundleError: Naming the class path and the package.
    """
    root = spec.class_path.partition(".")[0]
    if root != "medseq" and root not in trust:
        raise BundleError(
            "class_path is outside medseq",
            where=where,
            found=spec.class_path,
            wanted=" or ".join(f"{name}.*" for name in ("medseq", *trust)),
            remedy=f"if you trust its code, pass --trust-package {root}",
        )
    pending: list[Any] = list(spec.init_args.values())
    while pending:
        value = pending.pop()
        if isinstance(value, dict) and "class_path" in value:
            require_trust(_nested(value, where), trust, where)
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _resolve(class_path: str, trust: tuple[str, ...], where: str) -> type:
    require_trust(ClassSpec.model_construct(class_path=class_path, init_args={}), trust, where)
    module_name, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise BundleError(
            "class_path cannot be imported", where=where, found=f"{class_path} ({error.name or 'import fails'})"
        ) from None
    if cls is None:
        raise BundleError("class_path does not exist", where=where, found=class_path)
    # A trusted module also holds what it imports: its own classes only.
    own = inspect.isclass(cls) and cls.__module__.partition(".")[0] in {"medseq", *trust}
    if not own or not (_is_module(cls) or is_transform(cls)):
        raise BundleError("class_path is neither a layer nor a transform", where=where, found=class_path)
    return cls


def _is_module(cls: type) -> bool:
    import torch

    return issubclass(cls, torch.nn.Module)


def is_transform(cls: type) -> bool:
    """Whether a class offers the three steps of `medseq.data.transforms`."""
    return all(callable(getattr(cls, method, None)) for method in ("fit", "apply", "invert"))
