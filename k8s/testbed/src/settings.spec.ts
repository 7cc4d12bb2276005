import { expect, it } from '@jest/globals';
import { existingCluster, loadBed, overlap } from './settings.ts';

it('two beds share no name, no address and no folder', () => {
  const [one, two] = [
    loadBed({ HOLDFAST_TESTBED_DIR: '/a' }),
    loadBed({ HOLDFAST_TESTBED_DIR: '/b', HOLDFAST_TESTBED_SUBNET: '10.97' }),
  ];
  const values = (bed: typeof one): string[] =>
    [bed, bed.node(1), bed.node(2)]
      .flatMap((part) => Object.entries(part))
      // Within its cluster a node of every bed has the same name.
      .flatMap(([key, value]) => (typeof value === 'string' && key !== 'name' ? [value] : []));
  expect(new Set([...values(one), ...values(two)]).size).toBe(values(one).length + values(two).length);
});

it('a bed takes three networks in a row', () => {
  expect(
    ['hf-10-85', 'hf-10-86', 'hf-10-87', 'hf-10-89', 'hf-10-90', 'hf-11-87', 'hf-10-8'].map((other) =>
      overlap('hf-10-87', other),
    ),
  ).toEqual([true, true, true, true, false, false, false]);
});

it('names of interfaces fit into what the kernel allows, also for the longest subnet', () => {
  const bed = loadBed({ HOLDFAST_TESTBED_DIR: '/a', HOLDFAST_TESTBED_SUBNET: '192.168' });
  expect([bed.prefix, bed.node(20).link].filter((name) => name.length > 15)).toEqual([]);
});

it.each(['10', '10.300', '10.254', '10.87.0', 'a.b'])('%s is no subnet', (subnet) => {
  expect(() => loadBed({ HOLDFAST_TESTBED_SUBNET: subnet })).toThrow(/HOLDFAST_TESTBED_SUBNET/);
});

it("somebody else's cluster is taken only when it is chosen", () => {
  expect(existingCluster({ KUBECONFIG: '/k' })).toBeNull();
  expect(existingCluster({ HOLDFAST_TESTBED: 'existing', KUBECONFIG: '/k' })).toBe('/k');
  expect(() => existingCluster({ HOLDFAST_TESTBED: 'existing' })).toThrow(/KUBECONFIG/);
});
