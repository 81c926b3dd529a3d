"""Puts this project's dashboard into a W&B project, as a workspace made from `pages/dashboard_spec.py`.

    pip install wandb-workspaces
    WANDB_API_KEY=... python scripts/create_dashboard.py --project safe-rlhf-video [--entity TEAM]

Prints where it is. Without an account, scripts/dashboard.py draws the same panels from metrics.jsonl.
"""

import argparse
import os

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", required=True, help="as in the training's tracking.project")
    parser.add_argument("--entity", help="a user or team; else the key's own")
    parser.add_argument("--name", default="Safe RLHF Video", help="what the workspace is called")
    arguments = parser.parse_args()

    from safe_rlhf_video.pages.wandb_workspace import build_workspace

    # Built before anything is asked of the server: what is wrong here is said without it.
    workspace = build_workspace(arguments.project, arguments.entity or "", arguments.name)
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ConfigError("W&B needs an API key to save a workspace; set WANDB_API_KEY, or use scripts/dashboard.py")
    try:
        workspace.entity = arguments.entity or wandb.Api().default_entity
        workspace.save()
        print(f"saved {workspace.url}")
    # The package lets through what the client, its GraphQL library or the network raise.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"W&B did not save the workspace ({reason}); check WANDB_API_KEY, --entity and --project"
        ) from error
