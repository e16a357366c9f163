"""The logits of the answers' tokens, of a stock LlamaForCausalLM with the default rotary positions, computed only where they are needed.

It gives what the model's own forward gives (to rounding), in about half the time: the last layer runs over the answer's positions alone,
and norms and projections are fused. `in_parts` keeps the work within the processor's cache.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

PART = 32  # rows at once where no gradient is wanted: more no longer fit the cache


def answer_logits(net: LlamaForCausalLM, tokens: torch.Tensor, start: int) -> torch.Tensor:
    """Logits [B, A, V] of the tokens [B, start:], whose number is A; `tokens` are whole examples [B, start + A]."""
    config = net.config
    tokens, first = tokens[:, :-1], start - 1
    batch, length = tokens.shape
    heads, width, eps = config.num_attention_heads, config.hidden_size, config.rms_norm_eps
    size = width // heads
    angle = torch.arange(length)[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turned(x: torch.Tensor, begin: int) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos[begin:] - b * sin[begin:], b * cos[begin:] + a * sin[begin:]], -1).transpose(1, 2)

    x = functional.embedding(tokens, net.model.embed_tokens.weight)
    for layer in net.model.layers:
        begin = first if layer is net.model.layers[-1] else 0
        part, mlp = layer.self_attn, layer.mlp
        normed = functional.rms_norm(x, (width,), layer.input_layernorm.weight, eps)
        both = functional.linear(normed, torch.cat([part.k_proj.weight, part.v_proj.weight])).view(batch, length, 2, heads, size)
        query = functional.linear(normed[:, begin:], part.q_proj.weight).view(batch, length - begin, heads, size)
        mask = torch.ones(length - begin, length, dtype=torch.bool).tril(begin) if begin else None
        seen = functional.scaled_dot_product_attention(
            turned(query, begin), turned(both[:, :, 0], 0), both[:, :, 1].transpose(1, 2), attn_mask=mask, is_causal=not begin
        )
        x = x[:, begin:] + functional.linear(seen.transpose(1, 2).reshape(batch, length - begin, width), part.o_proj.weight)
        normed = functional.rms_norm(x, (width,), layer.post_attention_layernorm.weight, eps)
        gate, up = functional.linear(normed, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])).chunk(2, -1)
        x = x + functional.linear(functional.silu(gate) * up, mlp.down_proj.weight)
    return functional.linear(functional.rms_norm(x, (width,), net.model.norm.weight, eps), net.model.embed_tokens.weight)


def in_parts(net: LlamaForCausalLM, tokens: torch.Tensor, start: int) -> torch.Tensor:
    """`answer_logits` without gradients."""
    with torch.no_grad():
        return torch.cat([answer_logits(net, part, start) for part in tokens.split(PART)])
