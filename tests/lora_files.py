"""LoRAs in every layout, as their writers spell them."""

# layout, family: names and shapes of a few tensors as the writer of the layout spells them
FILES = {
    "kohya, SD 1": ("kohya", "sd1", {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (320, 8),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)}),
    "kohya, SD 2": ("kohya", "sd2", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight": (8, 1024)}),
    "kohya, SDXL": ("kohya", "sdxl", {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 2048)}),
    "kohya, SDXL without cross-attention": ("kohya", "sdxl", {
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2.lora_down.weight": (8, 5120)}),
    "kohya, FLUX": ("kohya", "flux", {
        "lora_unet_double_blocks_18_img_attn_proj.lora_down.weight": (8, 3072),
        "lora_unet_single_blocks_37_linear1.lora_down.weight": (8, 3072)}),
    "kohya, SD 3": ("kohya", "sd3", {"lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": (8, 1536)}),
    "peft, SD 1": ("diffusers", "sd1", {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 768),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (320, 8)}),
    "diffusers, old": ("diffusers", "sdxl", {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (8, 2048),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight": (8, 2048)}),
    "diffusers, FLUX": ("diffusers", "flux", {
        "transformer.single_transformer_blocks.37.attn.to_q.lora_A.weight": (8, 3072)}),
    "diffusers, FLUX with DoRA and default": ("diffusers", "flux", {
        "transformer.single_transformer_blocks.37.attn.to_q.lora_A.default.weight": (8, 3072),
        "transformer.single_transformer_blocks.37.attn.to_q.lora_magnitude_vector": (0, 3072)}),
    "XLabs, FLUX": ("other", "flux", {
        "double_blocks.0.processor.qkv_lora1.down.weight": (8, 3072),
        "single_blocks.0.processor.qkv_lora.up.weight": (9216, 8)}),
    "comfyui, FLUX": ("comfyui", "flux", {"diffusion_model.single_blocks.37.linear1.lora_down.weight": (8, 3072)}),
    "onetrainer, FLUX": ("onetrainer", "flux", {
        "lora_transformer_single_transformer_blocks_37_attn_to_q.lora_down.weight": (8, 3072)}),
    "LoHa": ("lycoris", "sd1", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_a": (1280, 8),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b": (8, 768)}),
    "LoKr": ("lycoris", "sdxl", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lokr_w1": (16, 32),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lokr_w2": (80, 64)}),
    "full difference": ("kohya", "sd1", {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.diff": (1280, 768)}),
    "OFT": ("lycoris", "sd1", {
        "oft_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.oft_blocks": (4, 768),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)}),
    "cloneofsimo": ("cloneofsimo", "sd1", {"unet:0:up": (320, 4), "unet:0:down": (4, 768)}),
}  # fmt: skip

# Parts of one module of 320 outputs and 768 inputs, as LyCORIS spells them; None is a single number.
KINDS = {
    "LoRA": {"lora_down.weight": (4, 768), "lora_up.weight": (320, 4), "alpha": None},
    "LoCon with lora_mid": {"lora_down.weight": (4, 768), "lora_up.weight": (320, 4), "lora_mid.weight": (4, 4)},
    "LoHa": {"hada_w1_a": (320, 4), "hada_w1_b": (4, 768), "hada_w2_a": (320, 4), "hada_w2_b": (4, 768)},
    "LoKr": {"lokr_w1": (16, 16), "lokr_w2_a": (20, 4), "lokr_w2_b": (4, 48), "alpha": None},
    "GLoRA": {"a1.weight": (4, 768), "a2.weight": (768, 4), "b1.weight": (4, 768), "b2.weight": (320, 4),
              "alpha": None},
    "IA3": {"weight": (1, 768), "on_input": None},
    "OFT": {"oft_blocks": (4, 80, 80), "alpha": None},
    "BOFT": {"oft_blocks": (2, 4, 80, 80), "alpha": None},
    "full difference": {"diff": (320, 768)},
    "norm": {"w_norm": (0, 320), "b_norm": (0, 320)},
}  # fmt: skip


def module(name, kind):
    """Names and shapes of a module's tensors."""
    return {f"{name}.{part}": shape for part, shape in KINDS[kind].items()}


def lora(name, inputs=768, up="lora_up.weight", down="lora_down.weight", **parts):
    """The same for a LoRA's module with matrices of these names and with more parts."""
    return {f"{name}.{down}": (4, inputs), f"{name}.{up}": (320, 4), **{f"{name}.{key}": s for key, s in parts.items()}}


def peft(name, inputs=768):
    """As `lora`, as PEFT calls the matrices."""
    return lora(name, inputs, "lora_B.weight", "lora_A.weight")
