"""After "Privacy-Conscious Delegation": a trusted model asks an untrusted one, without the user's secrets."""

import os

import dspy

local_lm = dspy.LM("openai/llama-3.2-3b", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
openai_lm = dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
dspy.configure(lm=local_lm)


class CraftRedactedRequest(dspy.Signature):
    """Given a private user query, create a privacy-preserving request for a powerful external LLM."""

    user_query = dspy.InputField()
    llm_request = dspy.OutputField()


class RespondToQuery(dspy.Signature):
    """Respond to a user query. For inspiration, there is a response of a powerful LLM to a related request."""

    related_llm_request = dspy.InputField()
    related_llm_response = dspy.InputField(desc="information from a powerful LLM")
    user_query = dspy.InputField(desc="the user's request you need to fulfill")
    response = dspy.OutputField(desc="your final response to the user's request")


class PAPILLON(dspy.Module):
    def __init__(self, untrusted_model):
        self.craft_redacted_request = dspy.ChainOfThought(CraftRedactedRequest)
        self.respond_to_query = dspy.Predict(RespondToQuery)
        self.untrusted_model = untrusted_model

    def forward(self, user_query):
        try:
            llm_request = self.craft_redacted_request(user_query=user_query).llm_request
            llm_response = self.untrusted_model(llm_request)[0]
            response = self.respond_to_query(
                related_llm_request=llm_request, related_llm_response=llm_response, user_query=user_query
            ).response
        except Exception:
            return dspy.Prediction(llm_request="", llm_response="", response="")
        return dspy.Prediction(llm_request=llm_request, llm_response=llm_response, response=response)


papillon = PAPILLON(openai_lm)
