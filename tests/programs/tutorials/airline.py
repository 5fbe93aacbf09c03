"""After "Customer Service Agent": tools over a small database, and a finished agent."""

import os

import dspy
from pydantic import BaseModel

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
)


class Flight(BaseModel):
    flight_id: str
    origin: str
    destination: str
    price: float


class Itinerary(BaseModel):
    confirmation_number: str
    flight: Flight


flights = {"DA123": Flight(flight_id="DA123", origin="SFO", destination="JFK", price=200)}
itineraries: dict[str, Itinerary] = {}


def fetch_flight_info(origin: str, destination: str) -> list[Flight]:
    """Fetch flights from origin to destination"""
    return [f for f in flights.values() if (f.origin, f.destination) == (origin, destination)]


def book_flight(flight_id: str) -> Itinerary:
    """Book a flight on behalf of the user."""
    booked = Itinerary(confirmation_number="abc123", flight=flights[flight_id])
    itineraries[booked.confirmation_number] = booked
    return booked


class AirlineCustomerService(dspy.Signature):
    """You are an airline customer service agent. Use the tools to fulfil the user's request."""

    user_request: str = dspy.InputField()
    process_result: str = dspy.OutputField(desc="what was done, with the confirmation number")


agent = dspy.ReAct(AirlineCustomerService, tools=[fetch_flight_info, book_flight])
