"""What helps to test programs and channels built on trionode; imports no test framework."""

from ._channels import ChannelMaker as ChannelMaker, check_two_way_channel as check_two_way_channel
