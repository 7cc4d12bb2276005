import { describe, expect, it } from '@jest/globals';
import { isPublicAddress } from './public-address.ts';

describe('a public address', () => {
  it('is one that the internet routes', () => {
    for (const address of [
      '8.8.8.8',
      '93.184.215.14',
      '2606:4700:4700::1111',
      '2001:4860:4860::8888',
      '::ffff:8.8.8.8',
    ])
      expect([address, isPublicAddress(address, [])]).toEqual([address, true]);
  });

  it('is no private, local, shared, reserved or multicast one, in no disguise', () => {
    for (const address of [
      ...['127.0.0.1', '127.255.0.1', '10.0.0.1', '172.16.0.1', '192.168.1.1', '169.254.169.254', '100.64.0.1'],
      ...['0.0.0.0', '0.1.2.3', '224.0.0.1', '240.0.0.1', '255.255.255.255', '192.0.2.1', '198.18.0.1', '198.51.100.1'],
      ...['::1', '::', '::ffff:127.0.0.1', '::ffff:10.0.0.1', '::127.0.0.1', '::7f00:1', '::ffff:0:127.0.0.1'],
      ...['64:ff9b::7f00:1', '64:ff9b:1::1', '2002:7f00:1::', '2001::1', 'fe80::1', 'fec0::1', 'fc00::1'],
      ...['fd00:ec2::254', 'ff02::1', '100::1', '2001:db8::1', '4000::1', '5f00::1'],
      ...['', 'localhost', '127.0.0.1:80', '[::1]', 'fe80::1%eth0'],
    ])
      expect([address, isPublicAddress(address, [])]).toEqual([address, false]);
  });

  it('is none of this machine', () => {
    expect(isPublicAddress('8.8.8.8', ['8.8.8.8'])).toBe(false);
    expect(isPublicAddress('::ffff:8.8.8.8', ['8.8.8.8'])).toBe(false);
    expect(isPublicAddress('2606:4700:4700::1111', ['2606:4700:4700:0::1111'])).toBe(false);
    expect(isPublicAddress('8.8.4.4', ['8.8.8.8', 'fe80::1%eth0'])).toBe(true);
  });
});
