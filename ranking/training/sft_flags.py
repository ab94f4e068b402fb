"""Flags of sft.py: those of its data, what must hold of TRL's, and the flags it cannot honour."""

from dataclasses import dataclass

from ranking.training.flags import DataArguments, TrainingDefaults
from ranking.training.help_texts import RETIRED
from ranking.training.parsing import FlagSet

SFT_RETIRED = {
    **RETIRED,
    "chat_template_path": "--chat_template_file",
    "eos_token": "--add_eos",
    "formatting_func": "--dataset_name with a file in a known schema",
    "padding_free": "--packing",
    "(completion|assistant)_only_loss": "nothing: only response turns are trained",
}


@dataclass
class SFTDataArguments(DataArguments):
    """Data flags of sft.py."""

    instruction_template: str | None = None
    response_template: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("instruction_template", "response_template"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.strip("\"'").strip())
                if not getattr(self, name):
                    raise ValueError(f"--{name} is empty")
        if (self.instruction_template is None) != (self.response_template is None):
            raise ValueError("--instruction_template and --response_template go together")

    @property
    def templates(self) -> tuple[str, str] | None:
        """What opens a user turn and a response turn, where it is given."""
        if self.instruction_template is None or self.response_template is None:
            return None
        return self.instruction_template, self.response_template


@dataclass
class SFTFlags(TrainingDefaults):
    """Mixin for TRL's SFTConfig, with the original spellings."""

    dataset_text_field: str = "chosen"

    def check(self):
        super().check()
        if self.dataset_text_field != "chosen":
            raise ValueError(
                f"--dataset_text_field {self.dataset_text_field}: only `chosen` is trained on; "
                "other columns are found by the dataset's schema"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ValueError(
                f"--packing_strategy {self.packing_strategy} lets packed texts see each other or "
                "splits them: use bfd"
            )


SFT = FlagSet(SFTDataArguments, SFTFlags, "SFTConfig", SFT_RETIRED, "sft.py")
