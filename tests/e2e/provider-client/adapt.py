"""Prints the provider's OpenAPI document as JSON, with `userId` added to the request and 200 to the responses."""

import json
import sys
from pathlib import Path

from ruamel.yaml import YAML

document = YAML(typ="safe").load(Path(sys.argv[1]))
request = document["components"]["schemas"]["BankTokenRequest"]
request["properties"]["userId"] = {"type": "string"}
request["required"] = ["userId"]
responses = document["paths"]["/bank/tokens/"]["post"]["responses"]
responses["200"] = responses["201"]
json.dump(document, sys.stdout)
