"""For ms-swift's --external_plugins: the ids that the embedded backbone's tokenizer gives to images and videos.

Its template has those of the published Qwen tokenizers. The folder of the backbone is in the environment, as MODEL.
"""

import json
import os
from pathlib import Path

from swift.template.templates.qwen import Qwen2VLTemplate

config = json.loads(Path(os.environ["MODEL"], "config.json").read_text())
Qwen2VLTemplate.image_token_id = config["image_token_id"]
Qwen2VLTemplate.video_token_id = config["video_token_id"]
