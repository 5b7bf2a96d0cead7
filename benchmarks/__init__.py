"""Comparisons with other libraries; none is needed to use this one."""
