import { DEFAULT_SANDBOX, type SandboxEnvironment } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import { environmentFaults, sandboxFrom, textsOf } from '../src/lib/sandbox-settings.ts';

const whole: SandboxEnvironment = {
  image: 'registry.example:5000/team/python:3.13',
  cpu_millis: 1_500,
  memory_mib: 2_048,
  runtime_class: 'gvisor',
  node_selector: { disk: 'ssd', 'example.com/zone': 'a', spare: '' },
  tolerations: [
    { key: 'gpu', operator: 'Equal', value: 'yes', effect: 'NoSchedule' },
    { key: 'spot', operator: 'Exists', effect: 'NoExecute' },
    { operator: 'Exists' },
  ],
  workspace: 'ephemeral',
  workspace_mib: 4_096,
  storage_class: 'fast',
  pool_size: 5,
  idle_seconds: 300,
  max_lifetime_seconds: 86_400,
};
const faultsOf = (texts: Partial<ReturnType<typeof textsOf>>) =>
  environmentFaults({
    name: 'e',
    config: { type: 'cloud', x_sandbox: sandboxFrom({ ...textsOf(DEFAULT_SANDBOX), ...texts }) },
  });

describe('the form of an environment', () => {
  it.each([whole, DEFAULT_SANDBOX])('gives back what it was given', (sandbox) => {
    expect(sandboxFrom(textsOf(sandbox))).toEqual(sandbox);
  });

  it('writes labels and tolerations as clusters write them', () => {
    const { node_selector, tolerations } = textsOf(whole);
    expect(node_selector).toBe('disk=ssd\nexample.com/zone=a\nspare=');
    expect(tolerations).toBe('gpu=yes:NoSchedule\nspot:NoExecute\n*');
    expect(textsOf({ ...whole, tolerations: [{ key: 'a', value: 'b' }] }).tolerations).toBe('a=b');
    expect(sandboxFrom({ ...textsOf(whole), node_selector: '\n disk = ssd \n' }).node_selector).toEqual({
      disk: 'ssd',
    });
  });

  it('takes nothing for the platform’s own', () => {
    expect(faultsOf({})).toEqual({});
    expect(sandboxFrom({ ...textsOf(DEFAULT_SANDBOX), pool_size: ' ', memory_mib: '' })).toEqual(DEFAULT_SANDBOX);
  });

  it.each<[Parameters<typeof faultsOf>[0], object]>([
    [{ pool_size: '201' }, { pool_size: 'must be at most 200' }],
    [{ memory_mib: '12' }, { memory_mib: 'must be at least 64' }],
    [{ cpu_millis: 'two' }, { cpu_millis: 'must be a whole number' }],
    [{ idle_seconds: '7.5' }, { idle_seconds: 'must be a whole number' }],
    [{ image: 'python 3' }, { image: 'must be an image reference' }],
    [{ node_selector: 'a b=c' }, { node_selector: 'must be a Kubernetes label key' }],
    [{ tolerations: 'gpu\nspot:Maybe' }, { tolerations: expect.stringMatching(/^line 2 must be one of NoSchedule/) }],
    [{ runtime_class: 'gVisor', storage_class: 'x' }, { runtime_class: 'must be a lower-case DNS name' }],
  ])('says what the API would refuse: %j', (texts, faults) => {
    expect(faultsOf(texts)).toEqual(faults);
  });

  it('says it of the name and the hosts too', () => {
    const networking = { type: 'limited', allowed_hosts: ['example.com', 'not a host'] };
    expect(environmentFaults({ name: '', config: { type: 'cloud', networking } })).toEqual({
      name: expect.stringContaining('>=1 characters'),
      networking: 'line 2 must be a host name, an IPv4 address or *.domain',
    });
  });
});
