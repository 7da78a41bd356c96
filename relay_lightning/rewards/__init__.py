"""How completions are judged: answer checking, and rewards from what a group of completions did."""
