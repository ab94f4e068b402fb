"""Attention of a packed row: each segment sees its ancestors and, causally, itself."""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from ranking.scoring.loading import unwrap
from ranking.scoring.packing import PackedRow


def segment_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask=None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_row: PackedRow | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row, segment by segment (transformers' AttentionInterface).

    query (1, n_heads, n, d), key and value (1, n_kv_heads, n, d); returns (1, n, n_heads, d).
    On a GPU in half precision one flash-attention call takes many segments.
    Raises NotImplementedError where the layer needs something this function does not compute.
    """
    if (
        packed_row is None
        or s_aux is not None
        or position_bias is not None
        or attention_mask is not None
    ):
        raise NotImplementedError("attention variant without segments")
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if softcap is None and dropout == 0.0 and flash_takes(query, key, value):
        return flash_attention(query, key, value, packed_row, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and (query.is_cuda or softcap is not None):  # no fused kernel has both and a mask
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for segment in packed_row.segments:
        queries = query[:, :, segment.start : segment.end]
        if segment.is_root:
            keys = key[:, :, segment.start : segment.end]
            values = value[:, :, segment.start : segment.end]
        else:
            chosen = segment.key_indices(key.device)
            keys, values = key.index_select(2, chosen), value.index_select(2, chosen)
        mask = segment.mask(sliding_window, query)
        if softcap is not None:
            outputs.append(softcapped_attention(queries, keys, values, mask, scaling, softcap,
                                                dropout))  # fmt: skip
            continue
        outputs.append(
            F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def flash_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether PyTorch's flash attention can: NVIDIA from Ampere on, half precision, head sizes."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and size == value.shape[-1] <= 256
        and size % 8 == 0
    )


def flash_attention(query, key, value, row: PackedRow, scaling, window: int | None) -> torch.Tensor:
    """`segment_attention` of all segments by flash attention, many in one call.

    A segment's queries are the last of its keys: causal attention aligned at the end.
    """
    from torch.nn.attention.varlen import varlen_attn

    outputs = [
        varlen_attn(
            query[0, :, call.queries].transpose(0, 1),
            key[0].transpose(0, 1).index_select(0, call.keys),
            value[0].transpose(0, 1).index_select(0, call.keys),
            call.query_starts,
            call.key_starts,
            call.most_queries,
            call.most_keys,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for call in row.layout(query.device)
    ]
    return torch.cat(outputs)[None]


def softcapped_attention(
    queries, keys, values, mask, scaling, softcap, dropout: float = 0.0
) -> torch.Tensor:
    """Attention with soft-capped scores (gemma2), which fused kernels do not offer."""
    scores = softcap * torch.tanh(queries @ keys.transpose(2, 3) * scaling / softcap)
    if mask is None:
        n = queries.shape[2]
        mask = torch.full((n, n), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    weights = torch.softmax((scores + mask).float(), dim=-1).to(values.dtype)
    return F.dropout(weights, dropout) @ values


AttentionInterface.register("segments", segment_attention)


def own_attention(model) -> list[tuple]:
    """(config, its attention's name) for every config in the decoder that names another attention
    than "segments"."""
    configs = [vars(module).get("config") for module in unwrap(model).get_decoder().modules()]
    named = {id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}
    return [(c, c._attn_implementation) for c in named.values()
            if c._attn_implementation != "segments"]  # fmt: skip


def switch_attention(model) -> list[tuple]:
    """Have the decoder call `segment_attention`; returns what `restore_attention` takes.

    Written into the configs, as `set_attn_implementation` does after its checks: this runs for
    every row. Where it is on already there is nothing to restore.
    """
    own = own_attention(model)
    for config, _ in own:
        config._attn_implementation_internal = "segments"
    return own


def restore_attention(own: list[tuple]) -> None:
    """Give configs the attention back that they had."""
    for config, name in own:
        config._attn_implementation_internal = name
