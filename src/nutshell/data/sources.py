"""Named data: where each source is, which files are taken, and its licence. docs/data-sources.md says what was checked."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data on the hub, or one file at an address."""

    about: str
    licence: str
    folder: str
    """Below the data folder."""
    use: str
    """The flag that reads it."""
    repository: str = ""
    revision: str = "main"
    """A commit, or a branch, whose newest commit is taken and recorded."""
    files: dict[str, str] = field(default_factory=dict)
    """Name here: path there. A .parquet that is named .jsonl here is rewritten, since the tasks read JSON lines."""
    shards: int = 0
    """Numbered files shard_00000.parquet ... for training; `files` has the one for validation."""
    megabytes: float = 0
    """Approximate size of `files`, or of one shard, for a dry run."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Hashes by path there, where known from another source than the hub itself."""
    url: str = ""
    """Of one file that is not on the hub; a .zip is unpacked. There is no known hash."""

    def wanted(self, shards: int | None) -> dict[str, str]:
        """Name here: path there, of all files and of the first `shards` training shards (None: all).

        ValueError for more shards than there are, or for a number if the source has none.
        """
        if shards is not None and not (self.shards and 1 <= shards <= self.shards):
            accepted = f"1 to {self.shards:,}" if self.shards else f"none, {self.folder} is always fetched whole"
            raise ValueError(f"-n is {shards}; accepted: {accepted}.")
        count = self.shards if shards is None else shards
        return {**self.files, **{f"train-{n:05d}.parquet": f"shard_{n:05d}.parquet" for n in range(count)}}


def _splits(folder: str, there: str, *splits: str) -> dict[str, str]:
    return {f"{folder}{split}.jsonl": f"{there}/{split}-00000-of-00001.parquet" for split in splits}


_BUCKET = "https://karpathy-public.s3.us-west-2.amazonaws.com/"
"""nanochat's public files (its runs/speedrun.sh)."""

SOURCES = {
    "climbmix": Source(
        about="ClimbMix, 400B tokens shuffled, in 6,542 shards and one for validation (arXiv 2504.13161; nanochat's copy)",
        licence="CC-BY-NC-4.0, as nvidia/ClimbMix", folder="climbmix", use="--data", repository="karpathy/climbmix-400b-shuffle",
        files={"val-00000.parquet": "shard_06542.parquet"}, shards=6542, megabytes=100,
    ),
    "fineweb-edu": Source(
        about="FineWeb-Edu, 100B tokens shuffled, in 1,822 shards and one for validation (arXiv 2406.17557; nanochat's copy)",
        licence="ODC-By 1.0, as HuggingFaceFW/fineweb-edu", folder="fineweb-edu", use="--data",
        repository="karpathy/fineweb-edu-100b-shuffle",
        files={"val-00000.parquet": "shard_01822.parquet"}, shards=1822, megabytes=100,
    ),
    "smoltalk": Source(
        about="smol-smoltalk, 460k conversations for small models (arXiv 2502.02737)",
        licence="Apache-2.0", folder="smoltalk", use="--sft", repository="HuggingFaceTB/smol-smoltalk", megabytes=971,
        files={f"train-{n:05d}.parquet": f"data/train-{n:05d}-of-00004.parquet" for n in range(4)}
        | {"test-00000.parquet": "data/test-00000-of-00001.parquet"},
    ),
    "mmlu": Source(
        about="MMLU: questions of 57 subjects (arXiv 2009.03300); train is its auxiliary_train",
        licence="MIT", folder="eval/mmlu", use="--eval-data data/eval", repository="cais/mmlu",
        revision="c30699e8356da336a370243923dbaf21066bb9fe", megabytes=52,
        files=_splits("", "all", "test", "validation", "dev") | {"train.jsonl": "all/auxiliary_train-00000-of-00001.parquet"},
        sha256={"all/test-00000-of-00001.parquet": "74a41822ce7d3def56e1682f958469c04642a5336a5ce912fa375fdb90fb25d7"},
    ),
    "gsm8k": Source(
        about="GSM8K: word problems of primary school (arXiv 2110.14168)",
        licence="MIT", folder="eval/gsm8k", use="--eval-data data/eval", repository="openai/gsm8k",
        revision="e53f048856ff4f594e959d75785d2c2d37b678ee", megabytes=3, files=_splits("", "main", "train", "test"),
    ),
    "arc": Source(
        about="ARC: science questions of schools, easy and challenge (arXiv 1803.05457)",
        licence="CC-BY-SA-4.0", folder="eval/arc", use="--eval-data data/eval", repository="allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453", megabytes=1.2,
        files={
            name: path for subset in ("ARC-Easy", "ARC-Challenge")
            for name, path in _splits(f"{subset}-", subset, "train", "validation", "test").items()
        },
        sha256={
            "ARC-Easy/train-00000-of-00001.parquet": "b315db8a4be597dc7daa50a4e70d48dd7c990c32085629e6ccd8c926beaa80b5",
            "ARC-Easy/validation-00000-of-00001.parquet": "ed890ff1e4cef7a7140d3a30dcea3ed2c9d467c6458f447ad9ef0176d8dcbb74",
            "ARC-Easy/test-00000-of-00001.parquet": "4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177",
            "ARC-Challenge/train-00000-of-00001.parquet": "e488c1587ffdcfc8443f916c53488a95cd471c5790e0746c6bfe4cecf20962cb",
            "ARC-Challenge/validation-00000-of-00001.parquet": "395a5c88d1580d69855fbaee9450270578df1ad5af6259771cd0a42c20e99f05",
            "ARC-Challenge/test-00000-of-00001.parquet": "62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9",
        },
    ),
    "humaneval": Source(
        about="HumanEval: 164 functions to write in Python (arXiv 2107.03374)",
        licence="MIT", folder="eval/humaneval", use="--eval-data data/eval", repository="openai/openai_humaneval",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544", megabytes=0.1,
        files={"HumanEval.jsonl": "openai_humaneval/test-00000-of-00001.parquet"},
    ),
    "core": Source(
        about="CORE's 22 tasks for models that only continue text (arXiv 2406.11794), nanochat's bundle",
        licence="each task's own", folder="eval/core", use="--eval-data data/eval",
        url=f"{_BUCKET}eval_bundle.zip", megabytes=162,
    ),
    "identity": Source(
        about="nanochat's 1,000 conversations about itself; `--sft primer` has our own",
        licence="MIT, as nanochat", folder="identity", use="--sft", url=f"{_BUCKET}identity_conversations.jsonl", megabytes=2.5,
    ),
    "tinyshakespeare": Source(
        about="Tiny Shakespeare, 1.1M characters; training and validation are divided as in nanoGPT",
        licence="public domain", folder="tinyshakespeare", use="--data", repository="karpathy/tiny_shakespeare", megabytes=0.7,
        files={
            "train-00000.parquet": "data/train-00000-of-00001.parquet",
            "val-00000.parquet": "data/validation-00000-of-00001.parquet",
            "val-00001.parquet": "data/test-00000-of-00001.parquet",
        },
        sha256={"data/test-00000-of-00001.parquet": "3657411dc127ce923291c3543582228841254121e57333441f64d45652e04d5b"},
    ),
}  # fmt: skip
