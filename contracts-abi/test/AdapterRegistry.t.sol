// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {Fixture} from "./Fixture.sol";
import {AdapterRegistry} from "../src/AdapterRegistry.sol";
import {Manifest, Splits} from "../src/lib/Types.sol";

contract AdapterRegistryTest is Fixture {
    function refuse(Manifest memory m, bytes memory why) private {
        bytes memory signature = signed(creatorKey, registry.manifestDigest(m));
        vm.expectRevert(why);
        vm.prank(creator);
        registry.registerAdapter(m, splits, signature);
    }

    function refuseSplits(bytes memory why) private {
        refuse(manifestOf("other", 1, 0), why);
    }

    function test_an_absurd_payee_delay_is_refused_at_deployment() public {
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.BadPayeeDelay.selector, 0));
        make("AdapterRegistry", abi.encode(0));
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.BadPayeeDelay.selector, 366 days));
        make("AdapterRegistry", abi.encode(366 days));
    }

    // ---------------------------------------------------------------- ids

    function test_ids_are_the_hashes_that_the_design_names() public view {
        eq(
            adapter,
            keccak256(
                abi.encode(block.chainid, address(registry), creator, MODEL, keccak256("med"))
            ),
            "adapterId"
        );
        eq(
            datanet,
            keccak256(abi.encode(block.chainid, address(registry), dataOwner, keccak256("prose"))),
            "datanetId"
        );
        (address who, uint64 version, bool retired, bytes32 splitsHash) =
            registry.adapterOf(adapter);
        eq(who, creator, "creator");
        eq(version, 1, "version");
        require(!retired, "retired");
        eq(splitsHash, keccak256(abi.encode(splits)), "splitsHash");
    }

    function test_an_unknown_adapter_has_no_creator_and_no_payee() public {
        (address who,,,) = registry.adapterOf(bytes32(uint256(1)));
        eq(who, address(0), "creator");
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.UnknownAdapter.selector, bytes32(uint256(1)))
        );
        registry.payeeOf(bytes32(uint256(1)), 0, shown());
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.UnknownDatanet.selector, bytes32(uint256(1)))
        );
        registry.datanetPayee(bytes32(uint256(1)));
    }

    // ---------------------------------------------------------------- registration

    function test_registering_twice_is_refused() public {
        refuse(
            manifestOf("med", 1, 0),
            abi.encodeWithSelector(AdapterRegistry.AdapterExists.selector, adapter)
        );
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.DatanetExists.selector, datanet));
        vm.prank(dataOwner);
        registry.registerDatanet(keccak256("prose"), payeeA);
    }

    function test_a_relayer_can_not_register_a_creators_manifest_with_splits_of_its_own() public {
        Manifest memory m = manifestOf("law", 1, 0);
        bytes memory signature = signed(creatorKey, registry.manifestDigest(m));
        splits.payees[0] = stranger;
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.NotCreator.selector, stranger, creator)
        );
        vm.prank(stranger);
        registry.registerAdapter(m, splits, signature);
    }

    function test_a_manifest_must_be_signed_by_its_creator() public {
        Manifest memory m = manifestOf("law", 1, 0);
        bytes memory signature = signed(strangerKey, registry.manifestDigest(m));
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.WrongSignature.selector, creator, stranger)
        );
        vm.prank(creator);
        registry.registerAdapter(m, splits, signature);
    }

    function test_a_signature_over_another_version_is_refused() public {
        Manifest memory m = manifestOf("law", 1, 0);
        bytes memory signature = signed(creatorKey, registry.manifestDigest(m));
        m.version = 2;
        vm.expectRevert(); // recovers to an address that depends on the digest
        vm.prank(creator);
        registry.registerAdapter(m, splits, signature);
    }

    function test_malleable_short_and_empty_signatures_are_refused() public {
        Manifest memory m = manifestOf("law", 1, 0);
        bytes memory signature = signed(creatorKey, registry.manifestDigest(m));
        vm.startPrank(creator);
        bytes memory high = malleated(signature);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, sOf(high)));
        registry.registerAdapter(m, splits, high);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 64));
        registry.registerAdapter(m, splits, new bytes(64));
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 0));
        registry.registerAdapter(m, splits, "");
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector); // ecrecover answers zero
        registry.registerAdapter(m, splits, new bytes(65));
        registry.registerAdapter(m, splits, signature);
    }

    function test_a_manifest_of_nobody_can_not_be_registered() public {
        Manifest memory m = manifestOf("law", 1, 0);
        m.creator = address(0);
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector);
        vm.prank(address(0));
        registry.registerAdapter(m, splits, new bytes(65));
    }

    function test_a_signature_for_another_chain_or_registry_is_refused() public {
        Manifest memory m = manifestOf("law", 1, 0);
        AdapterRegistry other = AdapterRegistry(make("AdapterRegistry", abi.encode(PAYEE_DELAY)));
        bytes memory signature = signed(creatorKey, other.manifestDigest(m));
        vm.expectRevert();
        vm.prank(creator);
        registry.registerAdapter(m, splits, signature);

        signature = signed(creatorKey, registry.manifestDigest(m));
        vm.chainId(1612);
        vm.expectRevert();
        vm.prank(creator);
        registry.registerAdapter(m, splits, signature);
    }

    function test_empty_hashes_are_refused() public {
        bytes memory why = abi.encodeWithSelector(AdapterRegistry.ZeroHash.selector);
        Manifest memory m = manifestOf("law", 1, 0);
        m.manifestHash = 0;
        refuse(m, why);
        m = manifestOf("law", 1, 0);
        m.contentDigest = 0;
        refuse(m, why);
        m = manifestOf("law", 1, 0);
        m.modelId = 0;
        refuse(m, why);
        vm.expectRevert(why);
        registry.registerDatanet(0, payeeA);
        vm.expectRevert(AdapterRegistry.ZeroAddress.selector);
        registry.registerDatanet(keccak256("x"), address(0));
    }

    function test_the_earliest_registration_of_a_content_is_kept() public {
        Manifest memory m = manifestOf("med again", 1, 0);
        m.contentDigest = manifestOf("med", 1, 0).contentDigest;
        bytes32 second = register(m);
        require(second != adapter, "two registrations, one id");
        eq(registry.firstByContent(m.contentDigest), adapter, "first by content");
        vm.prank(creator);
        registry.retire(adapter);
        eq(registry.firstByContent(m.contentDigest), adapter, "first by content, though retired");
        eq(registry.firstByContent(keccak256("nothing")), bytes32(0), "unknown content");
    }

    // ---------------------------------------------------------------- parents

    function test_a_parent_is_an_earlier_version_by_the_same_creator_for_the_same_model() public {
        bytes32 parent = keccak256("med");
        refuse(
            manifestOf("med", 2, keccak256("nothing")),
            abi.encodeWithSelector(AdapterRegistry.AdapterExists.selector, adapter)
        );
        refuse(
            manifestOf("med 2", 2, keccak256("nothing")),
            abi.encodeWithSelector(AdapterRegistry.UnknownParent.selector, keccak256("nothing"))
        );
        refuse(
            manifestOf("med 2", 1, parent),
            abi.encodeWithSelector(AdapterRegistry.VersionNotAbove.selector, 1, 1)
        );
        Manifest memory m = manifestOf("med 2", 2, parent);
        m.modelId = keccak256("another model");
        refuse(m, abi.encodeWithSelector(AdapterRegistry.UnknownParent.selector, parent));

        m = manifestOf("med 2", 2, parent);
        m.creator = stranger;
        bytes memory signature = signed(strangerKey, registry.manifestDigest(m));
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.UnknownParent.selector, parent));
        vm.prank(stranger);
        registry.registerAdapter(m, splits, signature);

        vm.prank(creator);
        registry.retire(adapter); // a retired version may be succeeded
        register(manifestOf("med 2", 2, parent));
    }

    // ---------------------------------------------------------------- splits

    function test_splits_must_sum_to_ten_thousand() public {
        splits.bps[0] = 5999;
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsSum.selector, 9999));
        splits.bps[0] = 6001;
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsSum.selector, 10001));
        splits.bps[0] = 65535;
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsSum.selector, 69535));
    }

    function test_splits_of_uneven_lengths_are_refused() public {
        splits.bps.push(1);
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsShape.selector, 2, 3, 1, 1));
        splits.bps.pop();
        splits.datanetBps.pop();
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsShape.selector, 2, 2, 1, 0));
    }

    function test_empty_splits_are_refused() public {
        delete splits;
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsSum.selector, 0));
    }

    function test_splits_with_a_zero_share_or_payee_are_refused() public {
        splits.bps = [9000, 0];
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsZero.selector, 1));
        splits.bps = [6000, 3000];
        splits.payees[0] = address(0);
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsZero.selector, 0));
        splits.payees[0] = payeeA;
        splits.bps[0] = 7000;
        splits.datanetBps[0] = 0;
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsZero.selector, 2));
    }

    function test_splits_name_registered_datanets_once() public {
        splits.datanets[0] = keccak256("nothing");
        refuseSplits(
            abi.encodeWithSelector(AdapterRegistry.UnknownDatanet.selector, keccak256("nothing"))
        );
        splits.datanets = [datanet, datanet];
        splits.datanetBps = [500, 500];
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.DuplicateDatanet.selector, datanet));
    }

    function test_more_than_64_payees_are_refused_64_are_not() public {
        delete splits;
        for (uint160 i = 0; i < 65; i++) {
            splits.payees.push(address(i + 1));
            splits.bps.push(100);
        }
        refuseSplits(abi.encodeWithSelector(AdapterRegistry.SplitsShape.selector, 65, 65, 0, 0));
        splits.payees.pop();
        splits.bps.pop();
        splits.bps[0] = 3700;
        bytes32 id = register(manifestOf("crowd", 1, 0));
        eq(registry.payeeOf(id, 63, shown()), address(64), "the last payee");
    }

    function test_splits_may_be_all_datanets() public {
        delete splits;
        splits.datanets = [datanet];
        splits.datanetBps = [10000];
        register(manifestOf("generous", 1, 0));
    }

    // ---------------------------------------------------------------- payees

    function test_the_payee_of_a_position_is_the_splits_until_it_hands_on() public {
        eq(registry.payeeOf(adapter, 0, shown()), payeeA, "position 0");
        eq(registry.payeeOf(adapter, 1, shown()), payeeB, "position 1");
        vm.prank(payeeA);
        registry.proposePayee(adapter, 0, stranger, shown());
        (address next, uint64 from) = registry.pendingPayee(adapter, 0);
        eq(next, stranger, "announced");
        eq(from, 1_790_000_000 + PAYEE_DELAY, "effective at");
        vm.warp(from - 1);
        eq(registry.payeeOf(adapter, 0, ""), payeeA, "a second before");
        vm.warp(from);
        eq(registry.payeeOf(adapter, 0, ""), stranger, "from then on");
        eq(registry.payeeOf(adapter, 1, shown()), payeeB, "position 1, untouched");
    }

    function test_only_the_payee_of_the_moment_hands_on() public {
        bytes memory s = shown();
        address[4] memory others = [creator, payeeB, stranger, address(this)];
        for (uint256 i = 0; i < others.length; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(AdapterRegistry.NotPayee.selector, others[i], payeeA)
            );
            vm.prank(others[i]);
            registry.proposePayee(adapter, 0, others[i], s);
        }
        vm.prank(payeeA);
        registry.proposePayee(adapter, 0, stranger, s);
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.NotPayee.selector, stranger, payeeA)
        );
        vm.prank(stranger); // not yet
        registry.proposePayee(adapter, 0, payeeB, s);
        vm.warp(1_790_000_000 + PAYEE_DELAY);
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.NotPayee.selector, payeeA, stranger)
        );
        vm.prank(payeeA); // no longer
        registry.proposePayee(adapter, 0, payeeA, s);
        vm.prank(stranger);
        registry.proposePayee(adapter, 0, payeeB, s);
        eq(registry.payeeOf(adapter, 0, s), stranger, "until the second change takes effect");
    }

    function test_a_later_announcement_replaces_an_earlier_one() public {
        vm.startPrank(payeeA);
        registry.proposePayee(adapter, 0, stranger, shown());
        vm.warp(1_790_000_000 + PAYEE_DELAY - 1);
        registry.proposePayee(adapter, 0, payeeA, shown()); // cancels
        vm.warp(1_790_000_000 + 10 * PAYEE_DELAY);
        eq(registry.payeeOf(adapter, 0, shown()), payeeA, "payee after cancelling");
        vm.expectRevert(AdapterRegistry.ZeroAddress.selector);
        registry.proposePayee(adapter, 0, address(0), "");
    }

    function test_the_splits_shown_must_be_the_adapters() public {
        bytes memory right = shown();
        splits.payees[0] = stranger;
        bytes memory wrong = shown();
        bytes memory why = abi.encodeWithSelector(
            AdapterRegistry.WrongSplits.selector, adapter, keccak256(wrong), keccak256(right)
        );
        vm.expectRevert(why);
        registry.payee(adapter, 0, wrong);
        vm.expectRevert(why);
        registry.payeeOf(adapter, 0, wrong);
        vm.expectRevert(why);
        vm.prank(stranger);
        registry.proposePayee(adapter, 0, stranger, wrong);
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.UnknownPosition.selector, adapter, 2)
        );
        registry.payee(adapter, 2, right);
    }

    function test_once_written_down_a_payee_needs_no_splits() public {
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.SplitsNeeded.selector, adapter, 1));
        registry.payee(adapter, 1, "");
        eq(registry.writtenPayee(adapter, 1), address(0), "written before");
        eq(registry.payee(adapter, 1, shown()), payeeB, "asked with the splits");
        eq(registry.writtenPayee(adapter, 1), payeeB, "written after");
        eq(registry.payee(adapter, 1, ""), payeeB, "asked without");
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.SplitsNeeded.selector, adapter, 0));
        registry.payee(adapter, 0, "");
    }

    function test_a_datanets_payee_hands_on_with_the_same_delay() public {
        eq(registry.datanetPayee(datanet), dataOwner, "payee");
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.NotPayee.selector, stranger, dataOwner)
        );
        vm.prank(stranger);
        registry.proposeDatanetPayee(datanet, stranger);
        vm.prank(dataOwner);
        registry.proposeDatanetPayee(datanet, stranger);
        (address next, uint64 from) = registry.pendingDatanetPayee(datanet);
        eq(next, stranger, "announced");
        vm.warp(from - 1);
        eq(registry.datanetPayee(datanet), dataOwner, "a second before");
        vm.warp(from);
        eq(registry.datanetPayee(datanet), stranger, "from then on");
        register(manifestOf("later", 1, 0)); // a Datanet whose payee changed is still registered
    }

    // ---------------------------------------------------------------- retiring

    function test_only_the_creator_retires_and_only_once() public {
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.NotCreator.selector, stranger, creator)
        );
        vm.prank(stranger);
        registry.retire(adapter);
        vm.expectRevert(
            abi.encodeWithSelector(AdapterRegistry.UnknownAdapter.selector, bytes32(0))
        );
        registry.retire(0);
        vm.startPrank(creator);
        registry.retire(adapter);
        (,, bool retired,) = registry.adapterOf(adapter);
        require(retired, "not retired");
        vm.expectRevert(abi.encodeWithSelector(AdapterRegistry.AlreadyRetired.selector, adapter));
        registry.retire(adapter);
        eq(registry.payeeOf(adapter, 0, shown()), payeeA, "a retired adapter's payee");
    }
}
