"""Fetch one of SafeSora's corpora from the Hugging Face hub.

    python scripts/download_safesora.py --corpus pairs --out SafeSora

pairs: comparisons (PKU-Alignment/SafeSora); label: harm labels of single videos (SafeSora-Label); eval: prompts to
generate from (SafeSora-Eval). The clips of pairs and label are the same videos.tar.gz (31.8 GB): fetch it once, and the
other corpus with --no_videos. The same command goes on after an interruption: whole files are checked against the hub's
checksum and kept, a partial one is continued. Set HF_TOKEN to your access token, HF_ENDPOINT to use another hub.
"""

import argparse
import shlex
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.data.config_files import is_config_name
from safe_rlhf_video.data.sources.safesora_hub import ARCHIVE, REPOSITORIES, DownloadPlan, fetch_files, plan_download
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.wording import size

PYTHON_CLASSES = {"label": "VideoDataset", "eval": "PromptDataset"}
LICENCE = """\
SafeSora is licensed under CC BY-NC 4.0: you may use and share it with attribution, for non-commercial purposes only
(https://creativecommons.org/licenses/by-nc/4.0/). It shows and describes harmful content."""
CONFIG_SAMPLING = "--max_pixels 50176"  # in which configs differ from the defaults


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=tuple(REPOSITORIES), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--revision", default="main", metavar="REV", help="a commit, tag or branch of the repository")
    parser.add_argument("--no_videos", action="store_true", help=f"leave {ARCHIVE} out")
    parser.add_argument("--extract", action="store_true", help=f"unpack {ARCHIVE} into DIR/videos")
    arguments = parser.parse_args()
    if arguments.corpus == "eval":
        parser.refuse_unused("--no_videos", "--extract", because="the corpus eval has no videos")
    if arguments.no_videos and arguments.extract:
        raise ConfigError("--extract: there is nothing to unpack with --no_videos; leave one of them out")
    print(LICENCE, flush=True)
    plan = plan_download(
        arguments.corpus,
        arguments.out,
        arguments.revision,
        with_videos=not arguments.no_videos,
        extract=arguments.extract,
    )
    print_plan(plan)
    report = fetch_files(plan)
    if report is not None:
        print(f"{plan.out / 'videos'}: {report.written} clips unpacked, {report.already_there} were there already")
        if report.others:
            print(f"{report.others} members are no clips and were passed over, the first is {report.first_other!r}")
    print(f"{plan.out}: {len(plan.files)} files of {plan.repository} are here and whole (revision {plan.commit})")
    print_next(arguments.corpus, plan)


def print_plan(plan: DownloadPlan) -> None:
    """Prints what is here, what there is to fetch, and the space that it needs."""
    print(f"{plan.repository} at {plan.commit[:12]}:")
    for file in plan.files:
        if file.name not in plan.arrived:
            state = "is here and whole"
        elif arrived := plan.arrived[file.name]:
            state = f"to fetch; {size(arrived)} have arrived"
        else:
            state = "to fetch"
        print(f"  {file.name:24} {size(file.size):>9}  {state}")
    print(f"  {size(plan.needed)} needed, {size(plan.free)} free in {plan.out}", flush=True)


def print_next(corpus: str, plan: DownloadPlan) -> None:
    """Prints the commands that a user needs next."""
    names = [file.name for file in plan.files]
    configs = [name for name in names if is_config_name(name)]
    has_archive = ARCHIVE in names
    folder = shlex.quote(str(plan.out))
    print("\nNext:")
    if corpus in PYTHON_CLASSES:
        # The clips may have been fetched with the other corpus, into its folder.
        place = "" if corpus == "eval" or has_archive else ', video_dir="SafeSora/videos"'
        print(f"    from safe_rlhf_video import {PYTHON_CLASSES[corpus]}")
        for name in configs:
            print(f"    data = {PYTHON_CLASSES[corpus]}.load({str(plan.out)!r}, {name!r}{place})")
    else:
        store = ""
        if has_archive and not plan.extract:
            store = f" --data.frame_store {folder}/frames"
            paths = " ".join(f"{folder}/{shlex.quote(name)}" for name in configs)
            print(
                f"    python scripts/prepare_videos.py --data {paths} --archive {folder}/{ARCHIVE} "
                f"--out {folder}/frames {CONFIG_SAMPLING}"
            )
        print(f"    deepspeed scripts/train_reward.py --config configs/joint.yaml --data.path {folder}{store}")
    if corpus != "eval" and not has_archive:
        print(f"The clips are in {ARCHIVE}, the same file in {REPOSITORIES['pairs']} and {REPOSITORIES['label']}.")
        if corpus == "label":
            print("Give the folder that it is unpacked in as video_dir.")
