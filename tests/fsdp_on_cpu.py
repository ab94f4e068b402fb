"""Runs a script under FSDP2 on CPU processes: `torchrun … tests/fsdp_on_cpu.py dpo.py --flags`.

accelerate offers FSDP on accelerators only; all this changes is its answer to "which kind of
distributed run is this?". Sharding, training, evaluating and saving are the real ones. It says how
many weights are sharded.
"""

import runpy
import sys
from pathlib import Path

import accelerate.accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
shard = accelerate.accelerator.fsdp2_prepare_model
initialize = AcceleratorState.__init__


def initialize_fsdp(self, *args, **kwargs):
    initialize(self, *args, **kwargs)
    self.distributed_type = DistributedType.FSDP
    if getattr(self, "fsdp_plugin", None) is None:
        self.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=True,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
        )
    if self._mixed_precision != "no" and self.fsdp_plugin.mixed_precision_policy is None:
        self.fsdp_plugin.set_mixed_precision(self._mixed_precision)


def prepare_and_say(accelerator, model):
    model = shard(accelerator, model)
    n = sum(isinstance(parameter, DTensor) for parameter in model.parameters())
    print(f"{n} weights are sharded", file=sys.stderr)
    return model


AcceleratorState.__init__ = initialize_fsdp
accelerate.accelerator.fsdp2_prepare_model = prepare_and_say
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
