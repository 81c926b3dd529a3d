"""Trains a reward or a cost of texts with TRL's RewardTrainer, and scores the test responses.

    OMP_NUM_THREADS=1 python benchmarks/peers/trl_text.py --data outputs/text_to_accuracy/world --head cost \\
        --epochs 2 --seed 0 --out outputs/trl_2

DATA has the config-train.json.gz and config-test.json.gz of time_to_accuracy.py --world text. TRL gets the embedded
backbone's language model as a Qwen3 classifier, whose states are the same, and the very tokens that this project makes
of a prompt and a response; adapter, rates and schedule are those of configs/text.yaml. Writes HEAD_SEED.json: the
scores by the responses' names, the epochs, and the processor's seconds from the start of this process to the end of
training.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from sides import chosen_first
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.records import VideoSample
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.models.backbones import Backbone, load_backbone
from safe_rlhf_video.models.config import BackboneConfig
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.responses import TextResponse

SCORED_AT_ONCE = 64


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--head", choices=("reward", "cost"), required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--comparisons_per_step", type=int, default=56)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    train, test = (PairDataset.load(arguments.data / f"config-{split}.json.gz") for split in ("train", "test"))
    backbone = load_backbone(BackboneConfig())
    tokens = {
        video.name: text_inputs(backbone, video)["input_ids"][0].tolist() for video in (*train.videos, *test.videos)
    }
    set_seed(arguments.seed)
    model = as_classifier(backbone)
    check_states(model, backbone, test.videos[0])
    model = train_reward(model, backbone.tokenizer, comparisons(train, arguments.head, tokens), arguments)
    seconds = time.process_time()
    scores = score(model, {video.name: tokens[video.name] for video in test.videos})
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {"cpu_seconds": seconds, "epochs": arguments.epochs, "scores": scores}
    write_whole(arguments.out / f"{arguments.head}_{arguments.seed}.json", json.dumps(result) + "\n")


def text_inputs(backbone: Backbone, video: VideoSample) -> dict[str, torch.Tensor]:
    assert video.response_text is not None
    return build_inputs(backbone, [video.prompt_text], [TextResponse(video.response_text)], "cpu")


def as_classifier(backbone: Backbone) -> Qwen3ForSequenceClassification:
    """The language model with a new linear head; of texts its rotary positions are plain ones."""
    fields = backbone.model_config.get_text_config().to_dict()
    rotary = {"rope_type": "default", "rope_theta": fields["rope_parameters"]["rope_theta"]}
    own = {name: fields[name] for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias",
    )}  # fmt: skip
    config = Qwen3Config(**own, rope_parameters=rotary, num_labels=1, pad_token_id=backbone.tokenizer.pad_token_id)
    model = Qwen3ForSequenceClassification(config)
    model.model.load_state_dict(backbone.model.language_model.state_dict())
    return model


def check_states(model: Qwen3ForSequenceClassification, backbone: Backbone, video: VideoSample) -> None:
    """The classifier's states of a text are the backbone's."""
    inputs = text_inputs(backbone, video)
    with torch.no_grad():
        own = backbone.model(**inputs, use_cache=False).last_hidden_state
        theirs = model.model.eval()(inputs["input_ids"], use_cache=False).last_hidden_state
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-4)


def comparisons(dataset: PairDataset, head: str, tokens: dict[str, list[int]]) -> Dataset:
    """A row for each strict label."""
    found = (chosen_first(pair, head) for pair in dataset.pairs)
    return Dataset.from_list(
        [{"chosen_ids": tokens[sides[0]], "rejected_ids": tokens[sides[1]]} for sides in found if sides]
    )


def train_reward(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    arguments: argparse.Namespace,
) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        settings = RewardConfig(
            output_dir=folder, seed=arguments.seed, num_train_epochs=arguments.epochs, use_cpu=True, bf16=False,
            per_device_train_batch_size=arguments.comparisons_per_step, learning_rate=2e-3, lr_scheduler_type="cosine",
            gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
        trainer = RewardTrainer(model, settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
        trainer.train()
        return trainer.model.eval()


def score(model: torch.nn.Module, tokens: dict[str, list[int]]) -> dict[str, float]:
    rows = [torch.tensor(ids) for ids in tokens.values()]
    scores: list[float] = []
    with torch.no_grad():
        for start in range(0, len(rows), SCORED_AT_ONCE):
            some = rows[start : start + SCORED_AT_ONCE]
            padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=model.config.pad_token_id)
            scores += model(padded, use_cache=False).logits.squeeze(1).tolist()
    return dict(zip(tokens, scores, strict=True))


if __name__ == "__main__":
    run_script(main)
