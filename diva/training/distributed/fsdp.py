"""FSDP2 for this model. Lightning's own strategy does not separate frozen from trainable weights.

With `FSDP2Strategy` every rank holds a shard of the LLM, of the encoder and of the adapter.
Its checkpoints have the same format as those of any other strategy. So a run can resume with another strategy or
another number of ranks.
TPUs are in `diva.training.distributed.xla`.
"""

from collections.abc import Mapping
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from diva.models.llm import decoder
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.callbacks import Throughput
from diva.training.checkpoints import ADAPTER_PREFIX


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks of all nodes. The LightningModule calls `shard_model` in `configure_model`."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Lightning's own methods would also gather the frozen weights, and would number the optimizer's parameters by the
    # whole model.

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """The unsharded state of the adapter, on every rank. A collective: all ranks must call it."""
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        adapter = self.lightning_module.model.adapter
        parameters = dict(adapter.named_parameters())
        state = {name: checkpoint["state_dict"][ADAPTER_PREFIX + name] for name in parameters}
        adapter.load_state_dict({name: like(state[name], parameters[name]) for name in parameters})

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return whole(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shares = {
                number: {
                    name: like(value, parameters[number]) if value.ndim else value
                    for name, value in of_one.items()
                }
                for number, of_one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})

    # Lightning's own methods use another file format.

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)


def shard_model(model: DivaForConditionalGeneration, mesh: DeviceMesh) -> None:
    """Shard the layers of encoder and LLM, and the whole adapter, over the ranks of `mesh`. Call it once.

    Weights that are used outside the `forward` of their module (token embeddings, positions, norms) are not sharded.
    """
    if isinstance(model.adapter, FSDPModule):
        return
    _shard_layers(decoder(model.llm), _layers(decoder(model.llm)), mesh)
    _shard_layers(model.encoder, list(model.encoder.layers), mesh)
    for layer in _layers(model.adapter):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model.adapter, mesh=mesh, reshard_after_forward=True)
    # transformers' generate reads this: a rank whose answer has ended continues until all ranks have finished.
    model._is_fsdp_managed_module = True  # type: ignore[assignment]


def _layers(module: nn.Module) -> list[nn.Module]:
    return [layer for part in module.modules() if isinstance(part, nn.ModuleList) for layer in part]


def _shard_layers(module: nn.Module, layers: list[nn.Module], mesh: DeviceMesh) -> None:
    """Shard each of a module's `layers`; it is gathered when it is needed.

    Wrapping `module` too lets FSDP2 prefetch the next layer.
    """
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    of_layers = {parameter for layer in layers for parameter in layer.parameters()}
    fully_shard(module, mesh=mesh, ignored_params=set(module.parameters()) - of_layers)


def whole(state: Any) -> Any:
    """The state with every sharded tensor gathered and on the CPU. A collective: all ranks must call it."""
    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, state)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard an unsharded tensor, which every rank has, in the same way as `parameter`."""
    assert isinstance(parameter, DTensor)
    value = value.to(parameter.device)
    # Without a source rank nothing is sent: each rank takes its shard of its own copy.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


class ReportingLauncher(_MultiProcessingLauncher):
    """For strategies that start processes: brings the state of some callbacks back from rank 0 to the main process.

    Lightning itself brings back weights and metrics only. The summary also needs throughput and faults.
    """

    def get_extra_results(self, trainer: Trainer) -> dict[str, Any]:
        seen = [vars(callback) for callback in _reporters(trainer)]
        return {**super().get_extra_results(trainer), "seen": seen, "data": trainer.datamodule.state_dict()}

    def update_main_process_results(self, trainer: Trainer, extra: dict[str, Any]) -> None:
        super().update_main_process_results(trainer, extra)
        trainer.datamodule.load_state_dict(extra["data"])
        for callback, seen in zip(_reporters(trainer), extra["seen"], strict=True):
            vars(callback).update(seen)


def _reporters(trainer: Trainer) -> list[Callback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]
