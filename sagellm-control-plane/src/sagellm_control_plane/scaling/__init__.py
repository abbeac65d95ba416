"""Scaling: how many engines a model is to have. Pure, and explained; others start and stop them."""

from __future__ import annotations

from .autoscaler import Autoscaler as Autoscaler
from .costs import CostMeter as CostMeter, Costs as Costs
from .decision import Decision as Decision, PoolView as PoolView
from .predictors import PREDICTORS as PREDICTORS, Predictor as Predictor, predictor_named as predictor_named
from .settings import ScalingSettings as ScalingSettings
from .signals import SignalMeter as SignalMeter, Signals as Signals
from .sizing import (
    Demand as Demand,
    Size as Size,
    Targets as Targets,
    engines_needed as engines_needed,
)
