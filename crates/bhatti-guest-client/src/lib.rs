//! The host's end of the conversation with the guest agent.
