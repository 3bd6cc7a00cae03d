"""A described network is the network that a plain interpreter of its layers computes, and every damage is one line."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_lists import interpret, random_layers, whole_network
from torch import fx, nn

from polyptych.backbones._caffe.layers import TYPES, BatchNorm, Convolution, Pooling
from polyptych.backbones._caffe.network import Section, resolve
from polyptych.backbones._caffe.prototxt import block_of, parse_prototxt, read_text, to_text
from polyptych.errors import InputError

PAPER = '''
# The first block of AutoMTL's ResNet, as its files write it.
name: "start"
input: "blob1"
input_dim: 1  input_dim: 3  input_dim: 64  input_dim: 64
layer { name: "conv1" type: "Convolution" bottom: "blob1" top: "conv_blob1"
        convolution_param { num_output: 8 bias_term: false pad: 3 kernel_size: 7 group: 1 stride: 2
                            weight_filler { type: "xavier" } dilation: 1 } }
layer { name: "batch_norm1" type: "BatchNorm" bottom: "conv_blob1" top: "batch_norm_blob1"
        batch_norm_param { use_global_stats: true eps: 1e-5 } }
layer { name: "relu1" type: "ReLU" bottom: "batch_norm_blob1" top: "relu_blob1" relu_param { inplace: true } }
layer { name: "max_pool1" type: "Pooling" bottom: "relu_blob1" top: "max_pool_blob1"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 round_mode: CEIL pad: 1 } }
layer { name: "conv2" type: "Convolution" bottom: "max_pool_blob1" top: "conv_blob2"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "add1" type: "Eltwise" bottom: "conv_blob2" bottom: "max_pool_blob1" top: "add_blob1"
        eltwise_param { operation: SUM } }
layer { name: "relu2" type: "ReLU" bottom: "add_blob1" top: "add_blob1" }
'''


def shuffled(network: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights and statistics that are not those of the start."""
    random = torch.Generator().manual_seed(seed)
    state = {name: torch.rand(value.shape, generator=random) + 0.1 if value.is_floating_point() else value
             for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return state


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_layers_to_text_to_network_is_what_a_plain_interpreter_computes(seed: int) -> None:
    check_layers(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_more_lists_of_layers(part: int) -> None:
    for seed in range(60 * part, 60 * (part + 1)):
        check_layers(seed)


def check_layers(seed: int) -> None:
    made, shape = random_layers(seed)
    description = parse_prototxt(to_text(made, shape), "random")
    assert list(description.layers) == made and description.shape == shape
    definition = description.define()
    network = whole_network(definition).eval()
    weights = shuffled(network, seed)
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        results = network(image)
    results = results if isinstance(results, tuple) else (results,)
    # Every layer stands under its name, unless nothing that the network gives depends on it.
    kept = {layer.name for index, layer in enumerate(made, 1) if index in definition.needed(definition.outputs)}
    assert kept == {layer.name for layer in made}
    assert {name for name, module in network.named_modules() if not list(module.children())} == kept
    for value, result in zip(definition.outputs, results, strict=True):
        until = made[:value]  # the top of that name as it was then
        expected = interpret(until, weights, image)[until[-1].top or until[-1].name]
        assert result.shape[1:] == definition.shapes[value][1:]
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    traced = fx.symbolic_trace(network)
    with torch.no_grad():
        again = traced(image)
    assert all(torch.equal(a, b) for a, b in zip(again if isinstance(again, tuple) else (again,), results, strict=True))


@given(st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_text_is_one_line_or_still_a_network(seed: int, data) -> None:
    made, shape = random_layers(seed % 40, count=6)
    text = to_text(made, shape) if seed % 3 else PAPER
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = min(len(text), at + data.draw(st.integers(0, 12)))
        text = text[:at] + data.draw(st.text(max_size=4) | st.sampled_from(
            ["{", "}", '"', "-", "0x", "layer {", "[", "1e999", "99999999999999999999999", "\n", "\0"])) + text[end:]
    try:
        parse_prototxt(text, "damaged").define()
    except InputError as error:
        said = str(error)
        assert "\n" not in said and "; needs " in said


def test_the_papers_form_of_a_file(tmp_path) -> None:
    (tmp_path / "start.prototxt").write_text(PAPER)
    network = whole_network(parse_prototxt(read_text(tmp_path / "start.prototxt")).define()).eval()
    assert [type(module) for module in network.children()] == [
        nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Conv2d, type(network.add1), nn.ReLU]
    image = torch.randn(2, 3, 64, 64)
    x = network.max_pool1(network.relu1(network.batch_norm1(network.conv1(image))))
    assert torch.equal(network(image), torch.relu(network.conv2(x) + x))
    assert network.conv1.bias is None and network.conv2.bias is not None
    assert network.max_pool1.ceil_mode and network.batch_norm1.affine


def test_the_input_may_be_declared_in_four_ways_and_read_by_many() -> None:
    body = '''layer { name: "a" type: "Convolution" bottom: "im" convolution_param { num_output: 3 kernel_size: 1 } }
              layer { name: "b" type: "Eltwise" bottom: "a" bottom: "im" top: "b" }'''
    heads = ['input: "im" input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 6',
             'input: "im" input_dim: [1, 3, 5, 6]',
             "input: 'im' input_shape { dim: 1, dim: 3; dim: 0x5 dim: 06 }",
             'layer { name: "im" type: "Input" top: "im" input_param { shape: { dim: 1 dim: 3 dim: 5 dim: 6 } } }']
    image = torch.randn(1, 3, 5, 6)
    for head in heads:
        network = whole_network(parse_prototxt(f"{head}\n{body}").define())
        assert torch.equal(network(image), network.a(image) + image)


def test_outputs_are_what_nobody_reads_or_what_is_declared() -> None:
    layers = [Convolution("stem", num_output=2, kernel_size=1), Pooling("small", kernel_size=2, stride=2),
              Convolution("left", bottom="stem", num_output=1, kernel_size=1)]
    network = whole_network(resolve(layers, (3, 4, 6)))
    image = torch.randn(1, 3, 4, 6)
    small, left = network(image)
    assert small.shape == (1, 2, 2, 3) and left.shape == (1, 1, 4, 6)
    definition = resolve(layers, (3, 4, 6))
    declared = Section(definition, (0,), (definition.find("stem", "outputs"),))
    assert [name for name, _ in declared.named_children()] == ["stem"]
    with pytest.raises(InputError, match=r"'lfet', which no layer makes.*nearest: left"):
        definition.find("lfet", "outputs")


def test_a_scale_after_batch_norm_is_its_affine_part_unless_the_file_says_otherwise() -> None:
    body = '''input_dim: [1, 3, 4, 4]
      layer {{ name: "bn" type: "BatchNorm" bottom: "data" top: "bn" {} }}
      layer {{ name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param {{ bias_term: true }} }}'''
    plain = parse_prototxt(body.format("batch_norm_param { moving_average_fraction: 0.75 }")).layers[0]
    assert plain == BatchNorm("bn", bottom=("data",), affine=False, momentum=0.25)
    assert parse_prototxt(body.format("batch_norm_param { affine: true }")).layers[0].affine is True
    network = whole_network(parse_prototxt(body.format("")).define())
    assert sum(p.numel() for p in network.parameters()) == 6


def replaced(old: str, new: str) -> str:
    assert old in PAPER
    return PAPER.replace(old, new, 1)


@pytest.mark.parametrize(("text", "parts"), [
    (replaced('type: "ReLU"', 'type: "ReLU6"'), ["f:11", "'relu1' of the unknown type 'ReLU6'", "nearest: ReLU"]),
    (replaced("kernel_size: 7", "kernal_size: 7"), ["f:7", "unknown field 'kernal_size'", "nearest: kernel_size"]),
    (replaced("relu_param", "relu_parma"), ["f:11", "unknown field 'relu_parma' of a ReLU layer", "relu_param"]),
    (replaced("input_dim: 1 ", "input_dmi: 1 "), ["f:5", "unknown field 'input_dmi' of a network", "input_dim"]),
    (replaced("input_dim: 1 ", ""), ["f:5", "3 sizes of the input", "four sizes"]),
    (replaced('input: "blob1"', 'input: "a" input: "b"'), ["inputs a, b of the input", "one input"]),
    (replaced('bottom: "relu_blob1"', 'bottom: "relu_blob"'), ["f:12", "'relu_blob', which no layer", "relu_blob1"]),
    (replaced('name: "conv2"', 'name: "conv1"'), ["f:14", "a name twice"]),
    (replaced('name: "conv2"', 'name: "conv1.x"'), ["f:14", "'conv1.x' beside 'conv1'"]),
    (replaced('name: "conv2"', 'name: "forward"'), ["f:14", "'forward', which modules have for themselves"]),
    (replaced("operation: SUM", "operation: ADD"), ["f:17", "ADD for 'operation'", "PROD, SUM, MAX"]),
    (replaced("operation: SUM", "operation: MAX coeff: 1 coeff: 2"), ["coefficients of MAX"]),
    (replaced("operation: SUM", "coeff: 1"), ["coeff of layer 'add1'", "1 coefficients", "each of 2"]),
    (replaced('bottom: "conv_blob2" ', ""), ["f:16", "bottom of layer 'add1'", "1 inputs", "2 or more"]),
    (replaced("num_output: 8 kernel_size: 3 pad: 1", "kernel_size: 3"), ["f:15", "no 'num_output'"]),
    (replaced("num_output: 8 kernel_size: 3 pad: 1", "num_output: 8 kernel_size: 3"), ["'add1'", "(b, 8, 15, 15)"]),
    (replaced("num_output: 8 kernel_size: 3 pad: 1", "num_output: 8.5 kernel_size: 3"), ["8.5 for 'num_output'"]),
    (replaced("bias_term: false", "bias_term: maybe"), ["maybe for 'bias_term'", "true or false"]),
    (replaced("bias_term: false", "bias_term: false bias_term: true"), ["f:7", "'bias_term'", "twice"]),
    (replaced("kernel_size: 7", "kernel_h: 7"), ["'kernel_h' alone", "kernel_h and kernel_w"]),
    (replaced("pool: MAX kernel_size: 3", "pool: MAX kernel_size: 1"), ["pad of layer 'max_pool1'", "half"]),
    (replaced("group: 1", "group: 2"), ["group of layer 'conv1'", "a divisor of 3 and 8"]),
    (replaced("kernel_size: 7", "kernel_size: 700"), ["f:6", "'conv1'", "(3, 64, 64)"]),
    (replaced('type: "Eltwise"', "type: Eltwise"), ["f:16", "Eltwise for 'type'", "quotes"]),
    (PAPER.rstrip().rstrip("}"), ["f:18", "the end of the file"]),
    (PAPER + "}", ["f:19", "'}'", "the name of a field"]),
    (PAPER + 'name: "x', ["f:19", "a string that does not end"]),
    (PAPER + "layers { }", ["f:19", "unknown field 'layers'", "nearest: layer"]),
    ("layer { name: 'x' }" + "{" * 500, ["f:1"]),
    ("a {" * 500, ["f:1", "64 messages within each other"]),
    ("", ["f:1", "0 sizes"]),
])
def test_what_is_wrong_is_said_with_its_line(text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse_prototxt(text, "f").define()
    said = str(error.value)
    assert "\n" not in said
    for part in parts:
        assert part in said, said


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_text(tmp_path / "none.prototxt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        read_text(tmp_path / "bytes")


def test_nothing_is_allocated_before_the_whole_is_known_to_fit() -> None:
    huge = [Convolution(f"c{i}", num_output=2**16, kernel_size=3) for i in range(3)]
    with pytest.raises(InputError, match="parameters so far"):
        resolve(huge, (3, 64, 64))


def test_every_type_has_a_block_of_its_own_name() -> None:
    assert {block_of(name) for name in TYPES} == {
        "convolution_param", "batch_norm_param", "relu_param", "pooling_param", "eltwise_param", "dropout_param",
        "inner_product_param", "concat_param", "sigmoid_param", "scale_param", "flatten_param"}


def test_gradients_reach_every_layer() -> None:
    network = whole_network(parse_prototxt(PAPER).define())
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_specification_is_checked_where_it_is_written() -> None:
    with pytest.raises(InputError, match="num_output of layer 'c': got 0; needs 1 to"):
        Convolution("c", num_output=0, kernel_size=1)
    with pytest.raises(InputError, match="global_pooling without one"):
        Pooling("p")
    changed = dataclasses.replace(Convolution("c", num_output=1, kernel_size=(1, 3)), pad=(0, 1))
    assert whole_network(resolve([changed], (2, 5, 7)))(torch.randn(1, 2, 5, 7)).shape == (1, 1, 5, 7)
