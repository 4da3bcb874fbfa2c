import numpy as np

from tools.bench import blip2, worker
from tools.bench.experts_test import fake


def test_both_sides_have_one_model_and_each_row_its_speed_and_memory(monkeypatch, capsys):
    told = []

    def theirs(python, bench, row, settings):
        told.append(settings.read_text())
        return fake([0.1, 8, 8, 8], 4_000_000_000)

    monkeypatch.setattr(worker, "our_command", lambda *_: fake([0.1, 4, 2, 3], 2_000_000_000))
    monkeypatch.setattr(worker, "their_command", theirs)
    blip2.measure("python", seconds=0, rows=["captions"])
    _, speed, memory = (line.split()[-5:] for line in capsys.readouterr().out.splitlines())
    assert speed == ["2.00", "0.50", "4.00", ">", "1.5"]
    assert memory == ["2.00", "4.00", "0.50", "<", "1.0"]
    assert '"ffn_dim": 4096' in told[0]
    assert '"word_embed_proj_dim": 512' in told[0]
    assert blip2.settings()["opt"]["vision_config"] == dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=14,
        layer_norm_eps=1e-6,
    )


def test_texts_are_as_long_as_what_is_measured():
    batch = blip2.photos_and(5)
    assert (batch["text"].shape, batch["image"].dtype) == ((4, 5), np.uint8)
