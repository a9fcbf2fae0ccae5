"""Names that strangers may give to tensors, embeddings and files, and numbers that lie."""

ENCODER_KEYS = (
    "clip_l", "clip_g", "clip_h", "t5", "t5xxl", "gemma", "llama", "qwen", "emb_params", "emp_params", "*",
    "string_to_param.*", "text_encoders_0", "text_encoders_1", "clip_l_out", "clip_g_out", "t5_out", "emp_params_out",
)  # fmt: skip
HOSTILE = (
    "", " ", ".", "..", "...", "../up", "../../etc/passwd", "/etc/passwd", "/tmp/x", "C:\\x", "C:x", "\\\\host\\share",
    "a/b", "a\\b", "..\\up", "CON", "con.txt", "NUL", "COM1", "LPT¹", "CONIN$", "a\0b", "\0", "a\nb", "\r\n", "\x1b[2J",
    "-rf", "-.x", "~", "~root", "$HOME", "`id`", "$(id)", "%n%s", "{0}", "{stem}", "{embedding}", "{", "*", "?",
    "<cat>", "cat", "Cat", "CAT ", "cat.", "cat_2", "ﬁ", "é", "e\u0301", "ß", "SS", "İ", "ı",
    "\u202egnp", "\u200b", "\ufeff",
    "\ud800", "🐈", "字" * 100, "a" * 10_000, "a." * 3_000, "unet" * 500, "(", ")", "[", "]:", "a,b", "AND", "BREAK",
    "|", "&", "__metadata__", "name", "step", "TORCHTENSOR", "string_to_token", "string_to_param", "_parameters",
    "lora", "lora_",
)  # fmt: skip
LORA_NAMES = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lokr_w1",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lokr_w2",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha",
    "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_up.weight",
    "unet.up_blocks.1.attentions.0.transformer_blocks.1.attn2.processor.to_v_lora.down.weight",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight",
    "unet:0:up", "unet:0:down", "text_encoder:3:up", "lycoris_x.hada_w1_a", "x.oft_blocks", "x.dora_scale",
)  # fmt: skip
METADATA_KEYS = (
    "pivotune.embedding", "pivotune.embeddings", "format", "sshs_model_hash", "sshs_legacy_hash",
    "modelspec.hash_sha256", "modelspec.architecture", "ss_base_model_version", "ss_v2",
    "string_to_token", "string_to_param", "name", "step",
    "<s1>", "clip_l", "ss_network_module",
)  # fmt: skip
METADATA_VALUES = ("<embed>", "True", "sdxl_", "flux-1-dev/lora", "stable-diffusion-xl-v1-base/lora", "{", "[" * 5000,
                   '{"cat": 1}', '{"cat": {"a": "b"}}', "[]", "null", "x" * 5000)  # fmt: skip
NUMBERS = (
    -1, 0, 1, 2, 3, 4, 7, 8, 255, 768, 1280, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1,
    2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**100, 10**4000,
)  # fmt: skip


def name(rng):
    """A name of any kind, alone or as part of a bundle."""
    pick = rng.random()
    if pick < 0.3:
        return rng.choice(HOSTILE)
    if pick < 0.5:
        return rng.choice(ENCODER_KEYS)
    if pick < 0.65:
        return rng.choice(LORA_NAMES)
    embedding = rng.choice((*HOSTILE, "cat", "mr. cat"))
    return (
        f"bundle_emb.{embedding}.{rng.choice((*ENCODER_KEYS, 'x', ''))}"
        if pick < 0.95
        else f"string_to_param.{embedding}"
    )
