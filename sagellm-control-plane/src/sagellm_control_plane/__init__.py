"""Many engines behind one interface: registry, routing, queueing, service levels, lifecycle and the remote engine.

Knows nothing of tokens' meaning, torch, or HTTP APIs for users. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoscaler import Autoscaler as Autoscaler, AutoscalerConfig as AutoscalerConfig
    from .engine_lifecycle import (
        EngineLifecycleManager as EngineLifecycleManager,
        EngineProcessInfo as EngineProcessInfo,
        EngineRuntime as EngineRuntime,
        EngineStatus as EngineStatus,
    )
    from .executors.base import ExecutionCoordinatorBase as ExecutionCoordinatorBase
    from .gpu_manager import GPUResourceManager as GPUResourceManager, GPUStatus as GPUStatus
    from .load_predictor import (
        ConstantPredictor as ConstantPredictor,
        ExponentialSmoothingPredictor as ExponentialSmoothingPredictor,
        LoadPredictor as LoadPredictor,
        MovingAveragePredictor as MovingAveragePredictor,
    )
    from .manager import ControlPlaneManager as ControlPlaneManager
    from .metrics_collector import MetricsCollector as MetricsCollector, SystemMetrics as SystemMetrics
    from .parallelism import (
        DataParallelStrategy as DataParallelStrategy,
        ExpertParallelStrategy as ExpertParallelStrategy,
        HybridParallelStrategy as HybridParallelStrategy,
        ParallelismConfig as ParallelismConfig,
        ParallelismOptimizer as ParallelismOptimizer,
        ParallelismStrategy as ParallelismStrategy,
        PipelineParallelStrategy as PipelineParallelStrategy,
        TensorParallelStrategy as TensorParallelStrategy,
    )
    from .pd_routing import PDRoutingStrategy as PDRoutingStrategy
    from .performance_interpolator import (
        DecodeInterpolator as DecodeInterpolator,
        PrefillInterpolator as PrefillInterpolator,
    )
    from .remote.client import RemoteEngine as RemoteEngine
    from .remote.server import serve_engine as serve_engine
    from .request_classifier import (
        RequestClassifier as RequestClassifier,
        ValidationErrorCode as ValidationErrorCode,
        ValidationResult as ValidationResult,
        create_classifier as create_classifier,
    )
    from .router import LoadBalancer as LoadBalancer, RequestRouter as RequestRouter
    from .service import ControlPlaneService as ControlPlaneService
    from .settings import PlaneSettings as PlaneSettings
    from .strategies.adaptive import AdaptivePolicy as AdaptivePolicy
    from .strategies.base import SchedulingPolicy as SchedulingPolicy
    from .strategies.cost_optimized import CostOptimizedPolicy as CostOptimizedPolicy
    from .strategies.fifo import FIFOPolicy as FIFOPolicy
    from .strategies.priority import PriorityPolicy as PriorityPolicy
    from .strategies.slo_aware import SLOAwarePolicy as SLOAwarePolicy
    from .topology import TopologyDetector as TopologyDetector
    from .types import (
        DecodingConfig as DecodingConfig,
        EngineInfo as EngineInfo,
        EngineState as EngineState,
        ExecutionInstance as ExecutionInstance,
        ExecutionInstanceType as ExecutionInstanceType,
        InstanceMetrics as InstanceMetrics,
        ParallelismType as ParallelismType,
        PDMetrics as PDMetrics,
        PDSeparationConfig as PDSeparationConfig,
        PerformanceMetrics as PerformanceMetrics,
        PrefillingConfig as PrefillingConfig,
        RequestMetadata as RequestMetadata,
        RequestPriority as RequestPriority,
        RequestStatus as RequestStatus,
        RequestType as RequestType,
        ScalingDecision as ScalingDecision,
        SchedulingDecision as SchedulingDecision,
        SchedulingMetrics as SchedulingMetrics,
    )

_ELSEWHERE = {
    "AdaptivePolicy": ".strategies.adaptive",
    "Autoscaler": ".autoscaler",
    "AutoscalerConfig": ".autoscaler",
    "ConstantPredictor": ".load_predictor",
    "ControlPlaneManager": ".manager",
    "ControlPlaneService": ".service",
    "CostOptimizedPolicy": ".strategies.cost_optimized",
    "DataParallelStrategy": ".parallelism",
    "DecodeInterpolator": ".performance_interpolator",
    "EngineLifecycleManager": ".engine_lifecycle",
    "EngineProcessInfo": ".engine_lifecycle",
    "EngineRuntime": ".engine_lifecycle",
    "EngineStatus": ".engine_lifecycle",
    "ExecutionCoordinatorBase": ".executors.base",
    "ExpertParallelStrategy": ".parallelism",
    "ExponentialSmoothingPredictor": ".load_predictor",
    "FIFOPolicy": ".strategies.fifo",
    "GPUResourceManager": ".gpu_manager",
    "GPUStatus": ".gpu_manager",
    "HybridParallelStrategy": ".parallelism",
    "LoadBalancer": ".router",
    "LoadPredictor": ".load_predictor",
    "MetricsCollector": ".metrics_collector",
    "MovingAveragePredictor": ".load_predictor",
    "PDRoutingStrategy": ".pd_routing",
    "ParallelismConfig": ".parallelism",
    "ParallelismOptimizer": ".parallelism",
    "ParallelismStrategy": ".parallelism",
    "PipelineParallelStrategy": ".parallelism",
    "PlaneSettings": ".settings",
    "PrefillInterpolator": ".performance_interpolator",
    "PriorityPolicy": ".strategies.priority",
    "RemoteEngine": ".remote.client",
    "RequestClassifier": ".request_classifier",
    "RequestRouter": ".router",
    "SLOAwarePolicy": ".strategies.slo_aware",
    "SchedulingPolicy": ".strategies.base",
    "SystemMetrics": ".metrics_collector",
    "TensorParallelStrategy": ".parallelism",
    "TopologyDetector": ".topology",
    "ValidationErrorCode": ".request_classifier",
    "ValidationResult": ".request_classifier",
    "create_classifier": ".request_classifier",
    "serve_engine": ".remote.server",
}
_TYPES = (
    "DecodingConfig",
    "EngineInfo",
    "EngineState",
    "ExecutionInstance",
    "ExecutionInstanceType",
    "InstanceMetrics",
    "PDMetrics",
    "PDSeparationConfig",
    "ParallelismType",
    "PerformanceMetrics",
    "PrefillingConfig",
    "RequestMetadata",
    "RequestPriority",
    "RequestStatus",
    "RequestType",
    "ScalingDecision",
    "SchedulingDecision",
    "SchedulingMetrics",
)
__version__ = "0.6.0"
__all__ = sorted([*_ELSEWHERE, *_TYPES])  # noqa: PLE0605 - data, so that it cannot differ from what can be had


def __getattr__(name: str) -> Any:
    module = _ELSEWHERE.get(name) or (".types" if name in _TYPES else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)
