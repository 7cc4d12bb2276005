import { networkInterfaces } from 'node:os';
import ipaddr from 'ipaddr.js';

/** What the internet's registries give out of IPv6 today; the rest is reserved or an IPv4 address in disguise. */
const GLOBAL_UNICAST: [ipaddr.IPv6, number] = [ipaddr.IPv6.parse('2000::'), 3];

/**
 * True for an address on the public internet: no private, loopback, link-local, shared (CGNAT), multicast, reserved or
 * unspecified range, none of them wrapped in IPv6 (mapped, compatible, 6to4, NAT64, Teredo), and no address of this machine.
 * Names have to be resolved first; who then dials must dial the address that was asked about.
 *
 * @param own addresses that are this machine's own. @default those of its interfaces now
 */
export function isPublicAddress(address: string, own: readonly string[] = ownAddresses()): boolean {
  if (!ipaddr.isValid(address)) return false;
  const parsed = ipaddr.process(address);
  if (parsed.range() !== 'unicast') return false;
  if (parsed instanceof ipaddr.IPv6 && !parsed.match(GLOBAL_UNICAST)) return false;
  return !own.some((one) => ipaddr.process(one).toNormalizedString() === parsed.toNormalizedString());
}

function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((all) => (all ?? []).map(({ address }) => address));
}
