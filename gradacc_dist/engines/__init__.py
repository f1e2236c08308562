"""How ranks share the work of a window: one small interface, one file per kind."""

from gradacc_dist.engines.build import build_engine
from gradacc_dist.engines.engine import Engine, Update

__all__ = ["Engine", "Update", "build_engine"]
