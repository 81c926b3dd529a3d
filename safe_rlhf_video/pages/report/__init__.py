"""What an evaluation says, as one page to look at: `page.make_report`."""
