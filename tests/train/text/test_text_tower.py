"""The text tower: BERT as PyTorch and transformers compute it, texts that do not touch each other, and its export."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from decipher_rt.train.checkpoint import CheckpointError
from decipher_rt.train.config import ConfigError
from decipher_rt.train.model.text import MaskedLanguageHead, TextConfig, TextEncoder, TextTower
from decipher_rt.train.text.bert_folder import checked_bert_config, read_bert_config, read_bert_weights
from decipher_rt.train.text.tokenizer import load_tokenizer

CONFIG = TextConfig(width=32, depth=2, heads=4, hidden=64, vocabulary=200, max_tokens=24)


def texts(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (rows, 24), generator=generator)
    mask = (torch.arange(24) < torch.tensor([[24], [9], [3]])[:rows]).long()
    return ids * mask, mask


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(1)
    tower = TextTower(CONFIG, 16).eval()
    with torch.no_grad():
        for parameter in tower.parameters():  # gains, biases and positions too
            parameter.add_(0.1 * torch.randn_like(parameter))
        tower.pooled_mean.normal_()
        tower.pooled_var.uniform_(0.5, 2)
    return tower


@torch.no_grad()
def test_layers_are_those_of_pytorch(tower: TextTower) -> None:
    encoder = tower.encoder
    ids, mask = texts()
    x = encoder.norm(encoder.words(ids) + encoder.positions[: ids.shape[1]])
    for block in encoder.blocks:
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", 1e-12, batch_first=True, norm_first=False)
        state = block.state_dict()
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": state["qkv.weight"], "self_attn.in_proj_bias": state["qkv.bias"],
                "self_attn.out_proj.weight": state["out.weight"], "self_attn.out_proj.bias": state["out.bias"],
                "linear1.weight": state["mlp.0.weight"], "linear1.bias": state["mlp.0.bias"],
                "linear2.weight": state["mlp.2.weight"], "linear2.bias": state["mlp.2.bias"],
                **{f"{n}.{k}": state[f"{n}.{k}"] for n in ("norm1", "norm2") for k in ("weight", "bias")},
            }
        )  # fmt: skip
        x = layer(x, src_key_padding_mask=mask == 0)  # in training mode: its fast path changes padded rows
    real = mask.bool()
    torch.testing.assert_close(encoder(ids, mask)[real], x[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_and_companions_change_nothing(tower: TextTower) -> None:
    ids, mask = texts()
    together = tower(ids, mask)
    assert torch.allclose(together.norm(dim=-1), torch.ones(3))
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = tower(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)
    # What stands behind the mask is not looked at.
    torch.testing.assert_close(tower(torch.where(mask > 0, ids, 7), mask), together)


def test_the_export_is_plain_onnx_and_takes_any_number_and_length(tower: TextTower, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "text.onnx"
    ids, mask = texts()
    batch, length = torch.export.Dim("B"), torch.export.Dim("T", max=CONFIG.max_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        torch.onnx.export(
            tower, (ids, mask), str(path), dynamo=True, opset_version=20, verbose=False, external_data=False,
            input_names=["input_ids", "attention_mask"], output_names=["embedding"],
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        )  # fmt: skip
    model = onnx.load(path)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert not model.functions
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, columns in ((3, 24), (1, 9), (2, 5)):
        some, seen = ids[:rows, :columns], mask[:rows, :columns]
        (found,) = session.run(None, {"input_ids": some.numpy(), "attention_mask": seen.numpy()})
        np.testing.assert_allclose(found, tower(some, seen).detach().numpy(), atol=2e-6)


def bert_folder(folder: Path) -> torch.nn.Module:
    """Write a small BERT as transformers does; return it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=200,
            max_position_embeddings=24, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    bert.save_pretrained(folder)
    return bert


@torch.no_grad()
def test_a_bert_of_transformers_gives_the_same(tmp_path: Path) -> None:
    bert = bert_folder(tmp_path)
    config = read_bert_config(tmp_path)
    assert config == CONFIG
    state, head_state = read_bert_weights(tmp_path, config)
    encoder, head = TextEncoder(config).eval(), MaskedLanguageHead(config).eval()
    encoder.load_state_dict(state)
    assert head_state is not None
    head.load_state_dict(head_state)
    ids, mask = texts()
    real = mask.bool()
    states = encoder(ids, mask)
    expected = bert.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[real], expected[real], atol=2e-5, rtol=1e-4)
    logits = bert(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(head(states, encoder.words.weight)[real], logits[real], atol=5e-4, rtol=1e-4)
    short = dataclasses.replace(config, max_tokens=9)
    assert read_bert_weights(tmp_path, short)[0]["positions"].shape == (9, 32)


def test_vocab_txt_is_split_as_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = [
        "brain",
        "lesion",
        "##s",
        "in",
        "the",
        "left",
        "2",
        "##5",
        "mm",
        ".",
        ",",
        "-",
        "front",
        "##al",
        "t",
        "##2",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    ours = load_tokenizer(tmp_path, max_tokens=16)
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True)
    for text in ("Brain: lesions in the LEFT frontal lobe, 25 mm.", "T2-weighted", "léft  BRAIN", "", "left " * 30):
        assert ours.encode(text).ids == theirs(text, truncation=True, max_length=16)["input_ids"], text


def test_what_is_no_bert_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_bert_config(tmp_path)
    good = {
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 200, "max_position_embeddings": 24,
    }  # fmt: skip
    for change, message in (
        ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_size": "big"}, "hidden_size is 'big', expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected a whole number"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', expected a number above 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan, expected a number above 0"),
        ({"num_attention_heads": 5}, r"width is 32, expected a multiple of .*heads \(5\)"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ConfigError, match=message):
            read_bert_config(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_bert_config(tmp_path)
    path.write_text(json.dumps(good))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="is a pickle and not read"):
        read_bert_weights(tmp_path, read_bert_config(tmp_path))
    save_file({"embeddings.word_embeddings.weight": torch.zeros(200, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tensor embeddings.position_embeddings.weight"):
        read_bert_weights(tmp_path, read_bert_config(tmp_path))


def made_up_bert(folder: Path, **changes: torch.Tensor) -> None:
    """Write a folder of one layer, without the library that does it for real."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    (folder / "config.json").write_text(json.dumps({**sizes, "vocab_size": 12, "max_position_embeddings": 6}))
    layer, embeddings = "encoder.layer.0", "embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}.word_embeddings.weight": (12, 8),
        f"{embeddings}.position_embeddings.weight": (6, 8),
        f"{embeddings}.token_type_embeddings.weight": (2, 8),
    }
    for part in ("self.query", "self.key", "self.value", "output.dense"):
        shapes |= {f"{layer}.attention.{part}.weight": (8, 8), f"{layer}.attention.{part}.bias": (8,)}
    for norm in (f"{embeddings}.LayerNorm", f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"):
        shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
    shapes |= {f"{layer}.intermediate.dense.weight": (16, 8), f"{layer}.intermediate.dense.bias": (16,)}
    shapes |= {f"{layer}.output.dense.weight": (8, 16), f"{layer}.output.dense.bias": (8,)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()} | changes
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embeddings.token_type_embeddings.weight", ()),
        ("embeddings.token_type_embeddings.weight", (0, 8)),
        ("embeddings.position_embeddings.weight", (5, 8)),
        ("embeddings.position_embeddings.weight", (6, 9)),
        ("embeddings.word_embeddings.weight", (13, 8)),
        ("encoder.layer.0.attention.self.key.weight", (8, 9)),
        ("encoder.layer.0.output.dense.bias", (1,)),
    ],
)
def test_tensors_of_a_bert_have_the_sizes_of_its_configuration(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    made_up_bert(tmp_path)
    config = checked_bert_config(tmp_path)
    TextEncoder(config).load_state_dict(read_bert_weights(tmp_path, config)[0])
    made_up_bert(tmp_path, **{name: torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=f"model.safetensors: {name} is .*, expected .* as config.json says"):
        checked_bert_config(tmp_path)


def test_sizes_that_the_weights_do_not_have_take_no_memory(tmp_path: Path) -> None:
    made_up_bert(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for key, size in (("hidden_size", 2 * 10**9), ("vocab_size", 10**30), ("num_hidden_layers", 10**9)):
        path.write_text(json.dumps({**good, key: size}))
        with pytest.raises(CheckpointError, match=r"as config.json says|has no tensor encoder.layer.1"):
            checked_bert_config(tmp_path)
