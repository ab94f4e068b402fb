"""What do SFT and DPO do to rankings? (§4)"""
