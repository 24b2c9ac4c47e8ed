"""Off-policy evaluation: is a new policy better than the deployed one, judged on users that training never saw?"""
