"""What commands print for programs."""

import json
import math

from openblip.cli.output import print_json


def test_json_has_no_number_that_is_none(capsys):
    print_json({"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": True})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": [1.5, None, [None, {"b": None}]], "c": "NaN", "d": True}
