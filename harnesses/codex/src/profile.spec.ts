import type { NativeCall } from '@holdfast/runner';
import { describe, expect, it } from '@jest/globals';
import { profile } from './profile.ts';

const call = (told: Partial<NativeCall>): NativeCall => ({
  ...{ name: 'exec_command', kind: 'execute', input: {}, text: '', diffs: [], output: undefined, failed: false },
  terminal: { printed: '', exitCode: null },
  ...told,
});
const start = { type: 'codex', model: 'm', system: null, contextTokens: 1_000, outputTokens: 100 };
const places = { folder: '/f', workspace: '/w', home: '/h', door: 'http://127.0.0.1:1' };
const configOf = (tools: Record<string, 'allow' | 'ask' | 'off'>) =>
  JSON.parse(profile.command({ ...start, tools }, places).env['CODEX_CONFIG'] ?? '') as {
    features: Record<string, boolean>;
  };

describe('Codex', () => {
  it('has its patches and its shell under the reference’s names', () => {
    const made = { path: '/w/a', oldText: null, newText: 'x\n' };
    const changed = { path: '/w/b', oldText: 'y', newText: 'z' };
    const patch = { name: 'Editing files', kind: 'edit' };
    const toolOf = (told: Partial<NativeCall>) => profile.toolOf(call(told));
    expect(toolOf({ input: { command: 'ls', cwd: '/w' } })).toEqual({ name: 'bash', input: { command: 'ls' } });
    expect(toolOf({ ...patch, diffs: [made] })).toEqual({
      name: 'write',
      input: { file_path: '/w/a', content: 'x\n' },
    });
    expect(toolOf({ ...patch, diffs: [changed] })).toEqual({
      name: 'edit',
      input: { file_path: '/w/b', old_string: 'y', new_string: 'z' },
    });
    expect(toolOf({ ...patch, diffs: [made, changed] })).toEqual({
      name: 'apply_patch',
      input: { changes: [made, changed] },
    });
    expect(toolOf({ name: 'view_image', kind: 'read', input: { path: 'p' } })).toEqual({
      name: 'view_image',
      input: { path: 'p' },
    });
  });

  it('tells what a command printed, how it ended, and when nobody knows', () => {
    const resultOf = (told: Partial<NativeCall>) => profile.resultOf(call(told));
    expect(resultOf({ terminal: { printed: 'a\n', exitCode: 0 } })).toEqual({ text: 'a\n', isError: false });
    expect(resultOf({ failed: true, terminal: { printed: 'a\n', exitCode: 3 } })).toEqual({
      text: 'a\n\n[exit code 3]',
      isError: true,
    });
    expect(resultOf({ failed: true })).toMatchObject({
      text: expect.stringMatching(/^Outcome unknown/),
      isError: true,
    });
  });

  it('has no shell where the agent has none, and the adapter’s own words are not the model’s', () => {
    expect(configOf({ bash: 'allow', '*': 'off' }).features).toMatchObject({ shell_tool: true, view_image: false });
    expect(configOf({ bash: 'off', '*': 'allow' }).features).toMatchObject({ shell_tool: false, unified_exec: false });
    expect([profile.isModels?.(null), profile.isModels?.('msg_1')]).toEqual([false, true]);
  });
});
