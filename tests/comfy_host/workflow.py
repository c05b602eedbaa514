"""A workflow as the page saves it, as the prompt that the page would queue; and the same, cheap enough for tests."""

from __future__ import annotations

from typing import Any

WIDGETS = ('INT', 'FLOAT', 'STRING', 'BOOLEAN', 'COMBO')
NOTES = ('Note', 'MarkdownNote')
SHRINK = 4
SIDES = ('width', 'height', 'base_size', 'region_x', 'region_y', 'region_width', 'region_height')


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API form of a workflow; KeyError if a node is missing on the host."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow['links']}
    prompt = {}
    for node in workflow['nodes']:
        if node['type'] in NOTES:
            continue
        inputs = dict(zip(widget_names(object_info[node['type']]), node.get('widgets_values', []), strict=False))
        inputs.pop(None, None)
        for slot in node.get('inputs', []):
            if slot.get('link') is not None:
                inputs[slot['name']] = sources[slot['link']]
        prompt[str(node['id'])] = {'class_type': node['type'], 'inputs': inputs}
    return prompt


def widget_names(info: dict[str, Any]) -> list[str | None]:
    """The names of a node's widgets in the order of their saved values; None for those that are the page's only."""
    names: list[str | None] = []
    for group in ('required', 'optional'):
        for name, (kind, *options) in info['input'].get(group, {}).items():
            if isinstance(kind, list) or kind in WIDGETS:
                names.append(name)
                if options and options[0].get('control_after_generate'):
                    names.append(None)
    return names


def cheapened(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with few steps and sides a quarter as long."""
    for node in prompt.values():
        inputs = node['inputs']
        if 'steps' in inputs:
            inputs['steps'] = 3
        for side in SIDES:
            if isinstance(inputs.get(side), int):
                inputs[side] //= SHRINK
    return prompt
