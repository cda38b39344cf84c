"""Which scheme each layer gets when size, time or error of the whole model is bounded: pure functions of tables of costs."""
