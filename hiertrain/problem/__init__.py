"""What is asked and what is answered: model, links, times, execution, plan. Frozen values, pure."""
