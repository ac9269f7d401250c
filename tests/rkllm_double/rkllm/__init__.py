"""A double of Rockchip's rkllm-toolkit 1.1.1 for tests. It converts nothing."""
