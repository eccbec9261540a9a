// Plays flows over links in SimGrid, as a fluid: who shares what is its own max-min solver's answer, not ours.
//
//   simgrid_flows SYSTEM [SimGrid's --cfg options]
//
// SYSTEM is a text file, one thing per line, links and flows numbered from 0 in the order of their lines:
//   link CAPACITY                          bytes/s
//   flow RELEASE BYTES LINK...             seconds, whole bytes, the links that it crosses
//   change TIME LINK CAPACITY              seconds, from then on bytes/s
// Printed: the CPU seconds of the simulation without its set-up, then when each flow ended, one a line.
//
// A flow needs a pair of hosts whose route is its links. The hosts here are otherwise nothing: as few as have a pair for every
// distinct route, because SimGrid keeps a table of all pairs. No latency, no loopback.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <simgrid/s4u.hpp>

namespace s4u = simgrid::s4u;

struct Flow {
  double release, bytes;
  std::vector<int> links;
};
struct Change {
  double time;
  int link;
  double capacity;
};
struct System {
  std::vector<double> links;
  std::vector<Flow> flows;
  std::vector<Change> changes;
};

static System read(const char* path)
{
  System system;
  std::ifstream file(path);
  if (not file)
    throw std::runtime_error(std::string("cannot read ") + path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "link") {
      double capacity = 0;
      words >> capacity;
      system.links.push_back(capacity);
    } else if (kind == "flow") {
      Flow flow;
      words >> flow.release >> flow.bytes;
      for (int link; words >> link;)
        flow.links.push_back(link);
      system.flows.push_back(flow);
    } else if (kind == "change") {
      Change change;
      words >> change.time >> change.link >> change.capacity;
      system.changes.push_back(change);
    } else {
      throw std::runtime_error("not a link, a flow or a change: " + line);
    }
  }
  return system;
}

// The hosts that stand for each route: pair k of distinct hosts, counted row by row, for the k-th route that is new.
static std::vector<std::pair<s4u::Host*, s4u::Host*>> lay(const System& system, std::vector<s4u::Link*>& links)
{
  std::map<std::vector<int>, size_t> number;
  for (const Flow& flow : system.flows)
    number.emplace(flow.links, number.size());
  auto n = static_cast<size_t>(std::ceil(std::sqrt(static_cast<double>(number.size())))) + 1; // n (n - 1) >= routes
  auto* zone = s4u::create_full_zone("zone");
  std::vector<s4u::Host*> hosts;
  for (size_t i = 0; i < n; i++)
    hosts.push_back(zone->create_host("h" + std::to_string(i), 1e9)->seal());
  for (size_t i = 0; i < system.links.size(); i++)
    links.push_back(zone->create_link("l" + std::to_string(i), system.links[i])->set_latency(0)->seal());
  auto pair_of = [&](size_t k) {
    size_t row = k / (n - 1), column = k % (n - 1);
    return std::make_pair(hosts[row], hosts[column < row ? column : column + 1]);
  };
  for (const auto& [route, k] : number) {
    std::vector<s4u::LinkInRoute> hops;
    for (int link : route)
      hops.emplace_back(links.at(link));
    auto [from, to] = pair_of(k);
    zone->add_route(from->get_netpoint(), to->get_netpoint(), nullptr, nullptr, hops, false);
  }
  zone->seal();
  std::vector<std::pair<s4u::Host*, s4u::Host*>> ends;
  for (const Flow& flow : system.flows)
    ends.push_back(pair_of(number.at(flow.links)));
  return ends;
}

static double cpu_seconds()
{
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

int main(int argc, char** argv)
{
  s4u::Engine engine(&argc, argv);
  if (argc != 2) {
    std::cerr << "usage: simgrid_flows SYSTEM [--cfg=...]\n";
    return 2;
  }
  const System system = read(argv[1]);
  std::vector<s4u::Link*> links;
  const auto ends = lay(system, links);
  std::vector<size_t> order(system.flows.size());
  for (size_t i = 0; i < order.size(); i++)
    order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return system.flows[a].release < system.flows[b].release; });
  std::vector<s4u::CommPtr> comms(system.flows.size());
  std::vector<double> now = system.links, most = system.links; // capacity of each link
  for (const Change& change : system.changes)
    most.at(change.link) = std::max(most.at(change.link), change.capacity);
  auto sleep_until = [](double time) {
    if (time > s4u::Engine::get_clock())
      s4u::this_actor::sleep_until(time);
  };
  s4u::Actor::create("flows", ends.at(0).first, [&] {
    for (size_t i : order) {
      const Flow& flow = system.flows[i];
      sleep_until(flow.release);
      // SimGrid keeps a flow for life below what its links can do when it starts: for that instant they can do the most
      for (int link : flow.links)
        if (most[link] > now[link])
          links[link]->set_bandwidth(most[link]);
      comms[i] = s4u::Comm::sendto_async(ends[i].first, ends[i].second, static_cast<uint64_t>(flow.bytes));
      for (int link : flow.links)
        if (most[link] > now[link])
          links[link]->set_bandwidth(now[link]);
    }
    for (const auto& comm : comms)
      comm->wait();
  });
  if (not system.changes.empty())
    s4u::Actor::create("changes", ends.at(0).first, [&] {
      for (const Change& change : system.changes) {
        sleep_until(change.time);
        now[change.link] = change.capacity;
        links[change.link]->set_bandwidth(change.capacity);
      }
    });
  const double began = cpu_seconds();
  engine.run();
  std::printf("%.3f\n", cpu_seconds() - began);
  for (const auto& comm : comms)
    std::printf("%.17g\n", comm->get_finish_time());
  std::fflush(stdout);
  std::_Exit(0); // tens of thousands of activities need not be taken apart
}
