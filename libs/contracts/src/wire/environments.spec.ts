import { describe, expect, it } from '@jest/globals';
import { createEnvironmentBody, DEFAULT_SANDBOX, resolveCloudConfig, updateEnvironmentBody } from './environments.ts';

const given = (x_sandbox: object | null) => ({ type: 'cloud' as const, x_sandbox });

describe('the sandbox settings of an environment', () => {
  it('are the platform’s own where nothing is said', () => {
    expect(resolveCloudConfig(undefined).x_sandbox).toEqual(DEFAULT_SANDBOX);
    expect(resolveCloudConfig({ type: 'cloud' }).x_sandbox).toEqual(DEFAULT_SANDBOX);
  });

  it('change one by one, each as a whole, and are reset by null', () => {
    const made = resolveCloudConfig(
      given({ image: 'python:3.13', pool_size: 5, node_selector: { disk: 'ssd', zone: 'a' } }),
    );
    expect(made.x_sandbox).toEqual({
      ...DEFAULT_SANDBOX,
      image: 'python:3.13',
      pool_size: 5,
      node_selector: { disk: 'ssd', zone: 'a' },
    });
    for (const nothing of [undefined, { type: 'cloud' as const }, given({})])
      expect(resolveCloudConfig(nothing, made)).toEqual(made);
    const changed = resolveCloudConfig(given({ image: null, node_selector: { disk: 'hdd' } }), made);
    expect(changed.x_sandbox).toEqual({ ...DEFAULT_SANDBOX, pool_size: 5, node_selector: { disk: 'hdd' } });
    expect(resolveCloudConfig(given(null), changed).x_sandbox).toEqual(DEFAULT_SANDBOX);
  });

  const labels = (amount: number) => Object.fromEntries(Array.from({ length: amount }, (_, n) => [`label-${n}`, 'x']));
  it.each<[string, string, object]>([
    ['a pool above its bound', '<=200', { pool_size: 201 }],
    ['a pool below nothing', '>=0', { pool_size: -1 }],
    ['half a sandbox', 'expected int', { pool_size: 0.5 }],
    ['too many labels', 'at most 16 labels', { node_selector: labels(17) }],
    ['a label that no node can have', 'Kubernetes label key', { node_selector: { 'a b': 'x' } }],
    ['a label value that no node can have', 'Kubernetes label value', { node_selector: { disk: 'x'.repeat(64) } }],
    ['an image with spaces', 'image reference', { image: 'python 3.13' }],
    ['no image', 'image reference', { image: '' }],
    ['next to no memory', '>=64', { memory_mib: 63 }],
    ['next to no processor', '>=50', { cpu_millis: 49 }],
    ['a class that no cluster has', 'DNS name', { runtime_class: 'gVisor' }],
    ['a storage class that no cluster has', 'DNS name', { storage_class: '-fast' }],
    ['a name with an empty part', 'DNS name', { storage_class: 'fast..ssd' }],
    ['a workspace of another kind', '"volume"|"ephemeral"', { workspace: 'disk' }],
    ['too many tolerations', '<=16', { tolerations: Array.from({ length: 17 }, () => ({ operator: 'Exists' })) }],
    ['a toleration of nothing', 'without a key', { tolerations: [{ effect: 'NoSchedule' }] }],
    ['a value that does not count', 'no value', { tolerations: [{ key: 'gpu', operator: 'Exists', value: 'yes' }] }],
    ['a toleration of another effect', '"NoSchedule"', { tolerations: [{ effect: 'Maybe' }] }],
    ['a life that ends at once', '>=60', { max_lifetime_seconds: 59 }],
    ['idleness that is over at once', '>=5', { idle_seconds: 4 }],
    ['privileges', 'Unrecognized key', { privileged: true }],
  ])('refuse %s and say why', (_name, why, sandbox) => {
    for (const parsed of [
      createEnvironmentBody.safeParse({ name: 'e', config: given(sandbox) }),
      updateEnvironmentBody.safeParse({ config: given(sandbox) }),
    ])
      expect(JSON.stringify(parsed.error?.issues).replaceAll('\\"', '"')).toContain(why);
  });

  it('take everything that a cluster takes', () => {
    const whole = {
      image: 'registry.example:5000/team/python@sha256:0123456789abcdef',
      cpu_millis: 1_500,
      memory_mib: 2_048,
      runtime_class: 'gvisor',
      node_selector: { 'kubernetes.io/os': 'linux', empty: '' },
      tolerations: [{ key: 'gpu', operator: 'Equal', value: 'yes', effect: 'NoSchedule' }],
      workspace: 'ephemeral',
      workspace_mib: 4_096,
      storage_class: 'fast.ssd',
      pool_size: 200,
      idle_seconds: 300,
      max_lifetime_seconds: 86_400,
    };
    const parsed = createEnvironmentBody.parse({ name: 'e', config: given(whole) });
    expect(parsed.config).toEqual(given(whole));
  });
});
