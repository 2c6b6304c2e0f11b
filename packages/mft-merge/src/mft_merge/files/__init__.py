"""JSON and safetensors on disk, and what identifies their content; nothing here knows of adapters."""
