"""The one hierarchy of errors a user can meet; each is raised at the boundary where the wrong thing came in."""

from __future__ import annotations


class SparsecError(Exception):
    """Base of all errors sparsec raises on purpose: what was found, where, what is allowed, what to do."""


class ModelError(SparsecError):
    """The model file or module cannot be read, or is not a model sparsec can take."""


class UnsupportedOpError(ModelError):
    """One or more nodes have no lowering; lists every blocking node (op, name, domain, opset)."""


class ShapeError(SparsecError):
    """A shape is dynamic where it must be bound, or does not match."""


class SchemeError(SparsecError):
    """A weight-format scheme does not parse or is not a legal combination."""


class RecipeError(SparsecError):
    """A recipe has an unknown key, a bad value, or a selector that matches nothing."""


class BudgetError(SparsecError):
    """A budget does not parse, or no choice of schemes meets it."""


class TargetError(SparsecError):
    """The compile target is unknown."""


class WeightError(SparsecError):
    """A weight tensor holds NaN or Inf, or is not constant."""


class OutputError(SparsecError):
    """An output path exists already or cannot be written."""


class ToolchainError(SparsecError):
    """An external compiler failed, or a kernel could not be built."""


class BundleError(SparsecError):
    """A compiled bundle or its weights file is damaged, truncated or foreign."""


class DeviceError(SparsecError):
    """The GPU a program needs cannot be used: no driver or an old one, no GPU or another one, too little memory, a kernel that failed."""


class InputError(SparsecError):
    """The arrays given to `run` have a wrong count, name, dtype or shape."""


class VerificationError(SparsecError):
    """The compiled program does not agree with the reference within tolerance."""


class CalibrationError(InputError):
    """Inputs to calibrate or validate on, or what was gathered from them, cannot be used: names, shapes, NaN, a singular matrix."""
