"""Run by each rank: trains the given run folders to their end, checking at each step that the ranks' weights are the same bits.

ranks.py FOLDER STAGES [SHARD] [DIE_AT]: SHARD is the recipe's; at step DIE_AT rank 1 ends without a word. A file
pairs.jsonl beside the folder is for DPO.
"""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_run import quick_evaluations, recipe

from nutshell.plan.stages import DPOConfig
from nutshell.runtime import leave_ranks, start_runtime
from nutshell.train.pipeline import run_stages
from nutshell.train.stage import Stage


def fingerprint(stage: Stage) -> torch.Tensor:
    digest = hashlib.sha256()
    for tensor in stage.whole_model(everywhere=True).state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def main(folders: str, stages: str, shard: str = "state", die_at: str = "0") -> None:
    runtime = start_runtime(device="cpu", dtype="float32", threads=1, ranks=True)
    record = Stage.record

    def checked(self, result, sources, **more):
        if self.step + 1 == int(die_at) and runtime.rank == 1:
            os._exit(1)
        record(self, result, sources, **more)
        mine = fingerprint(self)
        all_of_them = [torch.zeros_like(mine) for _ in range(runtime.world_size)]
        dist.all_gather(all_of_them, mine)
        if not all(torch.equal(mine, other) for other in all_of_them):
            raise SystemExit(f"the ranks differ after step {self.step} of {self.name}")

    Stage.record = checked
    with quick_evaluations():
        for folder, names in zip(folders.split(","), stages.split(","), strict=True):
            rows = 1 if runtime.world_size == 4 else 2
            asked = recipe(Path(folder), micro_batch_size=rows, shard=shard)
            if (pairs := Path(folder).parent / "pairs.jsonl").exists():
                asked = replace(asked, stages=replace(asked.stages, dpo=DPOConfig(pairs=str(pairs), batch=3, lr_fraction=0.3)))
            run_stages(asked, runtime, tuple(names.split("+")))
    leave_ranks(runtime)


main(*sys.argv[1:])
