'use client';
import { KeyList } from './key-list.tsx';
import { PageHeader } from './ui.tsx';

export function KeysPage() {
  return (
    <div className="mx-auto w-full max-w-4xl p-4 md:p-6">
      <KeyList
        path="/v1/x/api_keys"
        name="API key"
        whatEnds="its open streams and the dashboard sign-ins made with it"
        header={(create) => (
          <PageHeader
            title="API keys"
            about="A key acts for the whole workspace. It is stored as a hash and shown once."
          >
            {create}
          </PageHeader>
        )}
      />
    </div>
  );
}
