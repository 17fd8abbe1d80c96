"""What workers are told and what they answer: plain validated JSON, no pickle."""
