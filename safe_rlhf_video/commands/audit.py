"""Look at comparisons before anything is trained on them: leaks, duplicates, contradictions, noise, shape.

    python scripts/audit.py --data CONFIG [CONFIG ...] --out DIR

CONFIG is a file in SafeSora's format, or a folder with one; several are compared with each other, and the first is what
the baselines learn from: give the training data first. DIR gets audit.json and audit.html; docs/audit.md explains every
figure. Clips that are there are read to find duplicates (--no_content leaves that out); none has to be there.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.commands.clip_source import check_config_filename
from safe_rlhf_video.errors import ConfigError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="CONFIG", help="the training data first")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the report calls each config")
    parser.add_argument("--video_dir", help="where the clips lie, if not where the configs say")
    parser.add_argument("--frame_store", type=Path, metavar="DIR", help="its content hashes are taken")
    parser.add_argument("--no_content", action="store_true", help="read no clip to find duplicates")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write every plot there as PDF and PNG")
    arguments = parser.parse_args()
    check_config_filename(parser, arguments.data)
    try:
        run_audit(arguments)
    except OSError as error:
        raise ConfigError(
            f"{arguments.out}: cannot be written ({error.strerror}); give another folder as out"
        ) from error


def run_audit(arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.audit.audit import audit
    from safe_rlhf_video.audit.sections import write_audit
    from safe_rlhf_video.audit.splits import load_splits, read_store_hashes
    from safe_rlhf_video.pages.audit_page import audit_plots, make_audit_page
    from safe_rlhf_video.pages.document import write_figures, write_page

    splits = load_splits(arguments.data, arguments.config_filename, arguments.video_dir, arguments.names)
    hashes = read_store_hashes(arguments.frame_store) if arguments.frame_store else None
    result = audit(splits, read_content=not arguments.no_content, known_hashes=hashes)
    write_audit(arguments.out / "audit.json", result)
    plots = audit_plots(result)
    write_page(make_audit_page(result, plots), arguments.out / "audit.html")
    for finding in result.findings:
        print(f"{finding.mark:<8} {finding.text}".encode(errors="replace").decode())
    print(f"wrote {arguments.out / 'audit.json'} and {arguments.out / 'audit.html'}")
    if arguments.figures:
        print(write_figures(plots, arguments.figures))
