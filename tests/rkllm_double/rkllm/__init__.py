"""A double of Rockchip's rkllm-toolkit for tests. It converts nothing."""
