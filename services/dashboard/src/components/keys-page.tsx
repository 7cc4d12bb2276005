'use client';
import type { ApiKeyResource } from '@holdfast/contracts';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { KeyRound, Plus } from 'lucide-react';
import { useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import { Paged, usePages } from './paged.tsx';
import {
  Badge,
  Button,
  Confirm,
  CopyButton,
  cn,
  Empty,
  Field,
  FormError,
  Input,
  Modal,
  PageHeader,
  Panel,
  Time,
} from './ui.tsx';

export function KeysPage() {
  const client = useQueryClient();
  const list = usePages<ApiKeyResource>(['keys'], '/v1/x/api_keys?limit=50');
  const [creating, setCreating] = useState(false);
  const [name, setName] = useState('');
  const [made, setMade] = useState<string>();
  const [revoking, setRevoking] = useState<ApiKeyResource>();
  const refresh = () => client.invalidateQueries({ queryKey: ['keys'] });
  const create = useMutation({
    mutationFn: () => api<ApiKeyResource & { key: string }>('/v1/x/api_keys', { body: { name } }),
    onSuccess: async ({ key }) => {
      setMade(key);
      await refresh();
    },
  });
  const revoke = useMutation({
    mutationFn: (id: string) => api(`/v1/x/api_keys/${id}/revoke`, { method: 'POST' }),
    onSuccess: async () => {
      setRevoking(undefined);
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  const close = () => {
    setCreating(false);
    setMade(undefined);
    setName('');
    create.reset();
  };
  return (
    <div className="mx-auto w-full max-w-4xl p-4 md:p-6">
      <PageHeader title="API keys" about="A key acts for the whole workspace. It is stored as a hash and shown once.">
        <Button look="primary" onClick={() => setCreating(true)}>
          <Plus className="size-4" aria-hidden /> New key
        </Button>
      </PageHeader>
      <Panel className="overflow-hidden">
        <Paged list={list} empty={<Empty icon={<KeyRound />} title="No API keys" />}>
          <ul className="divide-y">
            {list.items.map((key) => (
              <li key={key.id} className="flex items-center gap-4 px-4 py-2.5">
                <span className={cn('min-w-0 flex-1', key.revoked_at !== null && 'text-soft line-through')}>
                  <span className="block truncate text-sm font-medium">{key.name}</span>
                  <span className="block truncate text-xs text-soft">
                    <span className="font-mono">{key.hint}</span> · created <Time at={key.created_at} />
                  </span>
                </span>
                {key.revoked_at === null ? (
                  <Button size="small" onClick={() => setRevoking(key)}>
                    Revoke
                  </Button>
                ) : (
                  <Badge tone="bad">Revoked</Badge>
                )}
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
      <Modal
        open={creating}
        onClose={close}
        title={made === undefined ? 'New API key' : 'Your new key'}
        {...(made === undefined ? {} : { about: 'Copy it now: it is not shown again.' })}
      >
        {made === undefined ? (
          <form
            className="space-y-4"
            onSubmit={(event) => {
              event.preventDefault();
              create.mutate();
            }}
          >
            <Field label="Name" hint="Who or what uses it.">
              <Input value={name} onChange={(event) => setName(event.target.value)} required maxLength={256} />
            </Field>
            {create.isError ? <FormError text={messageOf(create.error)} /> : null}
            <div className="flex justify-end">
              <Button look="primary" type="submit" busy={create.isPending}>
                Create
              </Button>
            </div>
          </form>
        ) : (
          <div className="space-y-4">
            <div className="flex items-start gap-2 rounded-lg bg-raised p-3">
              <code className="min-w-0 flex-1 font-mono text-sm break-all">{made}</code>
              <CopyButton text={made} label="Copy the key" />
            </div>
            <div className="flex justify-end">
              <Button look="primary" onClick={close}>
                Done
              </Button>
            </div>
          </div>
        )}
      </Modal>
      <Confirm
        open={revoking !== undefined}
        title={`Revoke ${revoking?.name ?? ''}?`}
        about="Requests with it are refused at once, its open streams and the dashboard sign-ins made with it end. This cannot be undone."
        action="Revoke"
        busy={revoke.isPending}
        onConfirm={() => revoking !== undefined && revoke.mutate(revoking.id)}
        onClose={() => setRevoking(undefined)}
      />
    </div>
  );
}
