"""LoRAs, ControlNets and IP-Adapters: read, put on a network, taken off."""
