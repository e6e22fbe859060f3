# SPDX-License-Identifier: Apache-2.0
"""Qwen-VLA: a Qwen3.5 vision-language model and an action expert joined by flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3_5ForConditionalGeneration
from transformers.utils import ModelOutput

from qwen_vla_ros.model import backbone, flow_matching
from qwen_vla_ros.model.action_expert import ActionExpert
from qwen_vla_ros.model.configuration import QwenVLAConfig
from qwen_vla_ros.model.context import VLMContext
from qwen_vla_ros.model.flow_matching import FlowDraw
from qwen_vla_ros.model.positions import mrope_positions


@dataclass
class QwenVLAOutput(ModelOutput):
    """Result of a training step.

    Attributes:
        loss: Mean of `sample_loss` over the samples that have an action. Shape ().
        sample_loss: Shape (B,).
        velocity: Prediction of Y_1 - Y_0. Shape (B, H, K).
        hidden: States the expert read. Shape (B, L, D).
        tau: Shape (B,).
    """

    loss: Tensor | None = None
    sample_loss: Tensor | None = None
    velocity: Tensor | None = None
    hidden: Tensor | None = None
    tau: Tensor | None = None


class QwenVLAForActionPrediction(PreTrainedModel):
    """Images and a prompt -> a normalised action chunk (H, K).

    Source: arXiv 2605.30280. `implementation` chooses how the backbone's weights are run: `fast`
    (qwen_vla_ros.model.backbone) or `stock` (transformers' own forward, the reference).
    """

    config: QwenVLAConfig
    config_class = QwenVLAConfig
    base_model_prefix = "qwen_vla"
    main_input_name = "input_ids"
    _no_split_modules = ["Qwen3_5DecoderLayer", "Qwen3_5VisionBlock", "DiTBlock"]  # noqa: RUF012
    _tied_weights_keys = {  # noqa: RUF012
        "backbone.lm_head.weight": "backbone.model.language_model.embed_tokens.weight"
    }
    _supports_sdpa = True
    _supports_flash_attn = False

    def __init__(self, config: QwenVLAConfig) -> None:
        super().__init__(config)
        self.backbone = Qwen3_5ForConditionalGeneration(config.backbone)
        self.action_expert = ActionExpert(config)
        self.implementation: Literal["fast", "stock"] = "fast"
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ActionExpert) and self.config.action_expert.adaln_zero:
            module.zero_initialise()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @property
    def _merge(self) -> int:
        return self.config.backbone.vision_config.spatial_merge_size

    def embed_images(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Features of images, to be shared by any number of prompts.

        Args:
            pixel_values: One frame's patches of all images. Shape (patches, C * p * p).
            image_grid_thw: Patches per image, t = 1. Shape (N, 3).

        Returns:
            Merged tokens of all images, one after another. Shape (patches / merge**2, D).
        """
        visual = self.backbone.model.visual
        if self.implementation == "stock":
            frames = backbone.expand_frames(pixel_values, visual)
            return torch.cat(self.backbone.model.get_image_features(frames, image_grid_thw).pooler_output)
        grids = [(int(h), int(w)) for _, h, w in image_grid_thw.tolist()]
        features: list[Tensor] = []
        start = first = 0
        while first < len(grids):
            height, width = grids[first]
            last = first
            while last < len(grids) and grids[last] == grids[first]:
                last += 1
            end = start + (last - first) * height * width
            features.append(backbone.vision_features(visual, pixel_values[start:end], height, width))
            start, first = end, last
        return features[0] if len(features) == 1 else torch.cat(features)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_grid_thw: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_index: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> VLMContext:
        """Run the backbone over a batch of prompts.

        Args:
            input_ids: Padded on the right. Shape (B, L).
            attention_mask: 1 for tokens. Shape (B, L).
            image_grid_thw: Of the images in `pixel_values` or `image_features`. Shape (N, 3).
            pixel_values: As for `embed_images`.
            image_features: From `embed_images`, instead of `pixel_values`.
            image_index: Which image each image slot of the batch shows, in reading order; lets prompts share
                images. Shape (slots,). Without it slot i shows image i.
            position_ids: mRoPE indices. Shape (3, B, L). Without it they are computed.
        """
        mask = attention_mask.bool()
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("attention_mask: expected padding on the right only")
        if image_features is None and pixel_values is not None:
            if image_grid_thw is None:
                raise ValueError("image_grid_thw: missing, pixel_values were given")
            image_features = self.embed_images(pixel_values, image_grid_thw)
        embeddings = self.backbone.get_input_embeddings()(input_ids)
        slots = input_ids == self.config.backbone.image_token_id
        if image_features is not None:
            if image_grid_thw is None:
                raise ValueError("image_grid_thw: missing, images were given")
            shown = self._arrange(image_features, image_grid_thw, image_index)
            found, expected = int(slots.sum()), len(shown)
            if found != expected:
                raise ValueError(f"input_ids: {found} image tokens, the images have {expected}")
            embeddings = embeddings.masked_scatter(slots[..., None], shown.to(embeddings.dtype))
        elif bool(slots.any()):
            raise ValueError("input_ids: image tokens, but neither pixel_values nor image_features")
        if position_ids is None:
            position_ids = self._positions(slots, mask, image_grid_thw, image_index)
        text = self.backbone.model.language_model
        until = self.config.action_expert.vlm_layer
        if self.implementation == "stock":
            states: list[Tensor] = []
            module = text.norm if until < 0 else text.layers[until]
            hook = module.register_forward_hook(lambda _module, _inputs, output: states.append(output))
            try:
                text(
                    inputs_embeds=embeddings,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    use_cache=False,
                )
            finally:
                hook.remove()
            hidden = states[0]
        else:
            hidden = backbone.text_states(text, embeddings, position_ids, until)
        return VLMContext(hidden, mask, position_ids)

    def _arrange(self, features: Tensor, grid: Tensor, index: Tensor | None) -> Tensor:
        """Features in the order of the batch's image slots."""
        if index is None:
            return features
        sizes = (grid.prod(dim=-1) // self._merge**2).tolist()
        if len(set(sizes)) == 1:
            return features.view(len(sizes), sizes[0], -1)[index].flatten(0, 1)
        parts = features.split(sizes)
        return torch.cat([parts[i] for i in index.tolist()])

    def _positions(self, slots: Tensor, mask: Tensor, grid: Tensor | None, index: Tensor | None) -> Tensor:
        merged = [] if grid is None else [(h // self._merge, w // self._merge) for _, h, w in grid.tolist()]
        images = merged if index is None else [merged[i] for i in index.tolist()]
        grids: list[list[tuple[int, int]]] = []
        for left in slots.sum(dim=1).tolist():
            row: list[tuple[int, int]] = []
            while left > 0 and images:
                row.append(images.pop(0))
                left -= row[-1][0] * row[-1][1]
            grids.append(row)
        return torch.from_numpy(mrope_positions(slots.cpu().numpy(), mask.cpu().numpy(), grids)).to(
            mask.device
        )

    def velocity(self, context: VLMContext, noisy: Tensor, tau: Tensor) -> Tensor:
        """Velocity Y_1 - Y_0 of a noisy chunk. noisy (B, H, K), tau (B,) or (B, H) -> (B, H, K)."""
        return self.action_expert(self.action_expert.prepare(context), noisy, tau)

    def flow_loss(
        self,
        context: VLMContext,
        actions: Tensor,
        action_mask: Tensor,
        drawn: FlowDraw | None = None,
        generator: torch.Generator | None = None,
    ) -> QwenVLAOutput:
        """Flow-matching loss of normalised chunks.

        Args:
            context: From `encode`.
            actions: In [-1, 1]; values outside the mask are not read. Shape (B, H, K).
            action_mask: True where an action is. Shape (B, H, K).
            drawn: Noise, tau and prefix; without it they come from the generator, see `draw_flow`.
            generator: For what is drawn.
        """
        flow = self.config.flow
        mask = action_mask.bool()
        clean = torch.where(mask, actions, 0.0).to(context.hidden.dtype)
        if drawn is None:
            drawn = flow_matching.draw_flow(len(clean), clean.shape[1:], flow, generator)
        noise, tau, prefix, signs = drawn.noise.to(clean), drawn.tau.to(clean), drawn.prefix, drawn.signs
        noisy = flow_matching.interpolate(clean, noise, tau)
        rows = tau
        if prefix is not None:
            given = torch.arange(clean.shape[1], device=clean.device) < prefix.to(clean.device)[:, None]
            told = clean if signs is None else clean * signs.to(clean)[:, None]
            noisy = torch.where(given[..., None], told, noisy)
            rows = torch.where(given, 0.0, tau[:, None])
            mask = mask & ~given[..., None]
        velocity = self.velocity(context, flow_matching.apply_padding(noisy, action_mask.bool(), flow), rows)
        sample_loss = flow_matching.masked_mse(velocity, noise - clean, mask)
        loss = sample_loss.sum() / mask.flatten(1).any(dim=1).sum().clamp(min=1)
        return QwenVLAOutput(loss, sample_loss, velocity, context.hidden, tau)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        actions: Tensor,
        action_mask: Tensor,
        image_grid_thw: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_index: Tensor | None = None,
        position_ids: Tensor | None = None,
        drawn: FlowDraw | None = None,
        generator: torch.Generator | None = None,
    ) -> QwenVLAOutput:
        """`encode`, then `flow_loss`; arguments as there."""
        context = self.encode(
            input_ids, attention_mask, image_grid_thw, pixel_values, image_features, image_index, position_ids
        )
        return self.flow_loss(context, actions, action_mask, drawn, generator)

    @torch.no_grad()
    def sample(
        self,
        context: VLMContext,
        action_mask: Tensor,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        temperature: float | None = None,
        prefix: flow_matching.Prefix | None = None,
    ) -> Tensor:
        """Draw normalised chunks by Euler steps from tau = 1 to 0.

        Args:
            context: From `encode`.
            action_mask: True where an action is. Shape (B, H, K) or (H, K).
            steps: Euler steps; the configuration's without it.
            generator: For the noise, on its own device.
            noise: Y_1 instead of drawn noise; temperature does not apply. Shape (B, H, K).
            temperature: Scale of the drawn noise; the configuration's without it.
            prefix: What the chunk has to continue.

        Returns:
            float32, zero outside the mask, not clipped. Shape (B, H, K).
        """
        flow, expert = self.config.flow, self.config.action_expert
        shape = (len(context.hidden), expert.horizon, expert.channels)
        like = context.hidden
        if noise is None:
            device = generator.device if generator is not None else like.device
            noise = torch.randn(shape, generator=generator, device=device)
            noise = noise * (flow.noise_temperature if temperature is None else temperature)
        # The steps run in float32 whatever the weights are.
        noise = noise.to(like.device, torch.float32)
        prepared = self.action_expert.prepare(context)
        return flow_matching.euler(
            lambda y, tau: self.action_expert(prepared, y.to(like.dtype), tau).float(),
            noise,
            action_mask.to(like.device).bool().expand(shape),
            flow.num_steps if steps is None else steps,
            flow,
            prefix,
        )
