"""Encoder, decoder and cross blocks: token sets, order, tools, errors."""

import pytest
import torch
from torch import nn

from osmose.mixers import MIXERS
from osmose.nn import CrossBlock, DecoderBlock, EncoderBlock
from osmose.tokens import Tokens

F64 = torch.float64
B, N, M, E, H = 3, 6, 4, 8, 2
ALL = list(MIXERS)
ORDERED = [name for name in ALL if name != "diffusion-sigmoid"]
LENGTHS, MEMORY_LENGTHS = torch.tensor([N, 4, 1]), torch.tensor([2, M, 3])


def block_of(kind, mixer, **options):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "dtype": F64} | options
    if kind is DecoderBlock and mixer not in ORDERED:
        options["causal"] = False
    block = kind(E, H, 12, mixer=mixer, **options)
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    return block


def points(*lead, seed=1, dtype=F64):
    return torch.randn(*lead, E, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def call(block, x, memory, tokens=None, memory_tokens=None):
    return block(x, tokens) if isinstance(block, EncoderBlock) else block(x, memory, tokens, memory_tokens)


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("kind", [EncoderBlock, DecoderBlock, CrossBlock])
@pytest.mark.parametrize("norm_first", [False, True])
def test_alone_padded_and_packed_are_the_same(mixer, kind, norm_first):
    block = block_of(kind, mixer, norm_first=norm_first)
    x, memory = points(B, N), points(B, M, seed=2)
    tokens, memory_tokens = Tokens.of(x, lengths=LENGTHS), Tokens.of(memory, lengths=MEMORY_LENGTHS)
    keep, keep_memory = tokens.mass > 0, memory_tokens.mass > 0
    out = call(block, x.masked_fill(~keep.unsqueeze(-1), 50.0), memory, tokens, memory_tokens)
    ptr, memory_ptr = (nn.functional.pad(sizes.cumsum(0), (1, 0)) for sizes in (LENGTHS, MEMORY_LENGTHS))
    packed = call(
        block, x[keep], memory[keep_memory], Tokens.of(int(ptr[-1]), ptr=ptr),
        Tokens.of(int(memory_ptr[-1]), ptr=memory_ptr),
    )  # fmt: skip
    torch.testing.assert_close(out[keep], packed)
    for b, (n, m) in enumerate(zip(LENGTHS.tolist(), MEMORY_LENGTHS.tolist(), strict=True)):
        torch.testing.assert_close(out[b, :n], call(block, x[b, :n], memory[b, :m]))


@pytest.mark.parametrize("mixer", ALL)
def test_packed_sets_may_be_mixed_up_weighted_and_without_memory(mixer):
    block = block_of(CrossBlock, mixer)
    x, memory, mass = points(7), points(5, seed=2), torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=F64)
    batch, memory_batch = torch.tensor([2, 0, 1, 0, 2, 1, 0]), torch.tensor([2, 0, 2, 0, 0])
    got = block(
        x, memory, Tokens.of(x, batch=batch), Tokens.of(memory, batch=memory_batch, mass=mass, num_sets=3)
    )
    for s in range(3):
        mine, its = batch == s, memory_batch == s
        alone = block(x[mine], memory[its], None, Tokens.of(memory[its], mass=mass[its]))
        torch.testing.assert_close(got[mine], alone)
    nothing = block.norm1(x + block.multihead_attn.out_proj.bias)
    wanted = block.norm2(nothing + block._feed_forward(nothing))
    torch.testing.assert_close(got[batch == 1], wanted[batch == 1])


@pytest.mark.parametrize("mixer", ORDERED)
@pytest.mark.parametrize("kind", [EncoderBlock, DecoderBlock])
def test_the_future_does_not_leak(mixer, kind):
    """Through the memory neither, where flow would let each target see how many others take."""
    block = block_of(kind, mixer, causal=True)
    x, memory = points(2, N), points(2, M, seed=2)
    changed = x.clone()
    changed[:, 4:] += points(2, 2, seed=3)
    before, after = call(block, x, memory), call(block, changed, memory)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=1e-12, atol=1e-12)
    assert (after - before)[:, 4:].abs().min() > 1e-6
    if kind is DecoderBlock:
        first = x.clone()
        first[:, 0] += 1.0
        assert ((call(block, first, memory) - before).abs().amax(-1) > 1e-9).all()  # the past does count


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("kind", [EncoderBlock, DecoderBlock, CrossBlock])
def test_every_parameter_learns(mixer, kind):
    block = block_of(kind, mixer, dropout=0.1)
    call(block, points(B, N), points(B, M, seed=2)).sin().sum().backward()
    unused = {name for name, p in block.named_parameters() if p.grad is None or not (p.grad != 0).any()}
    assert unused == set()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_a_decoder_of_flow_takes_from_memory_row_by_row():
    for mixer in ALL:
        ordered, free = (block_of(DecoderBlock, mixer, causal=c) for c in (mixer in ORDERED, False))
        assert free.multihead_attn.mixer == mixer
        assert ordered.multihead_attn.mixer == ("linear" if MIXERS[mixer].uses_columns else mixer)
    block = block_of(DecoderBlock, "diffusion", normalization="none", memory_mixer="softmax")
    assert (block.self_attn.options, block.multihead_attn.options) == ({"normalization": "none"}, {})
    block = block_of(DecoderBlock, "diffusion", normalization="none")
    assert block.multihead_attn.options == {"normalization": "none"}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # from torch's tracer
@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("causal", [False, True])
def test_compiles_in_one_graph_and_exports(mixer, causal):
    if causal and mixer not in ORDERED:
        return
    torch.compiler.reset()
    block = block_of(EncoderBlock, mixer, causal=causal, dtype=torch.float32, norm_first=True)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x, mask):
            return self.block(x, Tokens.of(x, mask=mask))

    model, x = Masked(), points(B, N, dtype=torch.float32)
    mask = torch.arange(N) < LENGTHS[:, None]
    want = model(x, mask)
    got = torch.compile(model, backend="aot_eager", fullgraph=True)(x, mask)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(out.sin().sum(), block.parameters()) for out in (got, want)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)
    exported = torch.export.export(model, (x, mask))
    torch.testing.assert_close(exported.module()(x, mask), want)


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_float32(mixer, dtype):
    torch.manual_seed(0)
    block = EncoderBlock(32, 4, mixer=mixer, dropout=0.0)
    x = torch.randn(2, 300, 32)
    tokens = Tokens.of(x, lengths=torch.tensor([300, 100]))
    want = block(x, tokens)
    with torch.autocast("cpu", dtype):
        out = block(x, tokens)
        out.float().square().mean().backward()
    assert (out.float() - want).norm() < 0.02 * want.norm()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="activation is 'tanh'; expected one of gelu, gelu_tanh, relu"):
        EncoderBlock(E, H, activation="tanh")
    with pytest.raises(ValueError, match="expected the simple kernel"):
        EncoderBlock(E, H, mixer="diffusion-sigmoid", causal=True)
    with pytest.raises(ValueError, match="normalization row or none"):
        DecoderBlock(E, H, mixer="diffusion", normalization="frobenius")
    with pytest.raises(ValueError, match="mixer is 'attention'; expected one of"):
        DecoderBlock(E, H, mixer="softmax", memory_mixer="attention")
    with pytest.raises(ValueError, match="pack both or pad both"):
        block_of(CrossBlock, "mean")(points(N), points(M), Tokens.of(N, ptr=torch.tensor([0, N])))
